"""Writing a checkpoint folder in the genuine format.

Invariant: the folder holds either the old checkpoint, or the new one, or (in the instant between)
no config.json and thus nothing that opens: a save that is interrupted never looks whole.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file

from plamo_ref.config import Plamo2Config
from plamo_ref.intake.checkpoint_files import (
    CONFIG_FILE,
    DTYPES,
    GENERATION_FILE,
    INDEX_FILE,
    LM_HEAD,
    SINGLE_FILE,
    fail,
)
from plamo_ref.intake.quantization_config import quantization_config
from plamo_ref.quantization.folder import to_tensors
from plamo_ref.quantization.quantize import quantize
from plamo_ref.quantization.schemes import SCHEMES, Scheme, is_quantized

SHARD_PATTERN = "model-*-of-*.safetensors"
MAX_SHARD_BYTES = 5 * 10**9

Tensors = Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]


def save(
    folder: str | Path,
    config: Plamo2Config,
    tensors: Tensors,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    generation_config: Mapping[str, Any] | None = None,
    quantization: str | None = None,
) -> None:
    """Write config.json, generation_config.json and the weights, sharded if they are large.

    `tensors` may be a stream of (name, tensor): one shard is in memory at a time. A tied model's
    `lm_head.weight` is left out; an untied one of [V, hidden] gets rows of zeros up to a multiple
    of 16. Other files of the folder (the tokenizer's) stay; an older checkpoint is replaced.

    Args:
        dtype: cast to it (float32, bfloat16 or float16); None keeps each tensor's own.
        max_shard_bytes: a shard holds at most this, or one tensor that is larger.
        generation_config: None writes the config's bos, eos and pad ids.
        quantization: a scheme by which products are stored, in compressed-tensors' convention.

    Raises:
        CheckpointError: a tensor is missing, unknown, given twice, of the wrong shape or dtype, or
            not finite. What the folder held before is then untouched.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if generation_config is None:
        ids = {k: getattr(config, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
        generation_config = {k: v for k, v in ids.items() if v is not None}
        generation_config["_from_model_config"] = True
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    # In the folder itself, so that every move below stays within one file system and is atomic.
    with TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        staging = Path(temporary)
        ready = _prepared(folder, config, pairs, dtype)
        data = config.to_dict()
        if quantization is not None:
            scheme = SCHEMES[quantization]
            ready = _quantized(ready, scheme)
            data["quantization_config"] = quantization_config(scheme, config.tensor_shapes)
        stored = _write_weights(staging, ready, max_shard_bytes)
        data |= {"torch_dtype": str(stored).removeprefix("torch.")}
        _write_json(staging / GENERATION_FILE, generation_config)
        _write_json(staging / CONFIG_FILE, data)
        _move_into_place(staging, folder)


def _prepared(
    folder: Path,
    config: Plamo2Config,
    pairs: Iterable[tuple[str, torch.Tensor]],
    dtype: torch.dtype | None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors as they will be stored: checked, cast, on the host, contiguous, unshared."""
    shapes = config.tensor_shapes
    missing = dict.fromkeys(shapes)
    for name, tensor in pairs:
        if name == LM_HEAD and config.tie_word_embeddings:
            continue
        if name not in missing:
            found = "it twice" if name in shapes else "an extra tensor"
            fail(folder, name, f"each of the {len(shapes)} tensors of the config once", found)
        del missing[name]
        # Always a copy: tensors of one file may not share storage, and views of one buffer would.
        tensor = tensor.detach().to("cpu", dtype or tensor.dtype, copy=True).contiguous()
        if name == LM_HEAD and tensor.shape == (config.vocab_size, config.hidden_size):
            extra = config.lm_head_rows - config.vocab_size
            tensor = torch.cat([tensor, tensor.new_zeros(extra, config.hidden_size)])
        if tuple(tensor.shape) != shapes[name]:
            fail(folder, name, f"shape {list(shapes[name])}", f"{list(tensor.shape)}")
        if str(tensor.dtype).removeprefix("torch.") not in DTYPES.values():
            fail(folder, name, "float32, bfloat16 or float16 (see dtype=)", tensor.dtype)
        if not all(bound.isfinite() for bound in tensor.aminmax()):
            fail(folder, name, f"finite numbers in {tensor.dtype}", "NaN or infinity")
        yield name, tensor
    if missing:
        fail(
            folder, next(iter(missing)), f"all of {len(shapes)} tensors", f"{len(missing)} missing"
        )


def _quantized(
    tensors: Iterable[tuple[str, torch.Tensor]], scheme: Scheme
) -> Iterator[tuple[str, torch.Tensor]]:
    """Products as the tensors that stand for them; all others as they are."""
    for name, tensor in tensors:
        if is_quantized(name, tuple(tensor.shape), scheme):
            yield from to_tensors(name, quantize(tensor, scheme), scheme).items()
        else:
            yield name, tensor


def _write_weights(
    staging: Path, tensors: Iterable[tuple[str, torch.Tensor]], max_shard_bytes: int
) -> torch.dtype:
    """Write one file, or shards and their index; return the dtype of the first tensor."""
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    total, dtype = 0, torch.float32

    def flush() -> None:
        save_file(pending, staging / f"{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and sum(t.nbytes for t in pending.values()) + tensor.nbytes > max_shard_bytes:
            flush()
        dtype = dtype if total else tensor.dtype
        total += tensor.nbytes
        pending[name] = tensor
    flush()

    if len(shards) == 1:
        (staging / "0").rename(staging / SINGLE_FILE)
        return dtype
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        (staging / str(i)).rename(staging / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(staging / INDEX_FILE, index)
    return dtype


def _move_into_place(staging: Path, folder: Path) -> None:
    """Replace the checkpoint in `folder`. config.json goes first and comes last: it is the seal."""
    # The safetensors library makes its files private; they get the mode that a new file has here.
    mode = (staging / CONFIG_FILE).stat().st_mode
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    for old in (folder / SINGLE_FILE, folder / INDEX_FILE, *folder.glob(SHARD_PATTERN)):
        old.unlink(missing_ok=True)
    for new in sorted(staging.iterdir(), key=lambda path: path.name == CONFIG_FILE):
        new.chmod(mode)
        os.replace(new, folder / new.name)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
