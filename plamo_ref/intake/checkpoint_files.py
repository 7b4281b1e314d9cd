"""What the files of a checkpoint folder say of themselves: index, headers, sizes.

Invariant: nothing here reads a tensor, or needs torch; every defect is one `CheckpointError` that
names the file, the tensor, what was expected and what was found.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open

from plamo_ref.config import Plamo2Config
from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.conversions import gguf_in, original_of
from plamo_ref.intake.json_files import (
    LFS_POINTER,
    is_file,
    is_folder,
    is_there,
    pointer_advice,
    read_object,
)
from plamo_ref.intake.values import shown

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
LM_HEAD = "lm_head.weight"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # what torch calls them
MAX_FILE_NAME = 255  # bytes, on every file system
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class CheckpointError(PlamoRefError, ValueError):
    """A defect of a checkpoint; the message names file, tensor, what was expected and found."""


def fail(file: Path, tensor: str, expected: object, found: object) -> NoReturn:
    tensor = tensor if tensor.isprintable() and len(tensor) <= MAX_FILE_NAME else shown(tensor)
    where = f"{file}: {tensor}" if tensor else f"{file}"
    raise CheckpointError(f"{where}: expected {expected}, found {found}")


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies, and what the header of that file says of it."""

    file: Path
    shape: tuple[int, ...]
    code: str  # dtype as safetensors spells it: "F32"
    name: str = ""  # in that file


@dataclass(frozen=True)
class PackedEntry:
    """The tensors that stand for a quantized weight."""

    values: TensorEntry
    scale: TensorEntry


def check_folder(folder: Path) -> None:
    """Refuse what cannot be a checkpoint at all.

    Raises:
        CheckpointError: no folder, or one that is another engine's.
    """
    wanted = f"a folder with {CONFIG_FILE} and safetensors files"
    if not is_folder(folder):
        fail(folder, "", wanted, "no such folder")
    foreign = gguf_in(folder)
    if foreign is not None and not is_there(folder / CONFIG_FILE):
        fail(folder, "", wanted, foreign)


def read_index(folder: Path) -> dict[str, str] | None:
    """Tensor name → file name from the index; None: there is one model.safetensors, no index.

    Raises:
        CheckpointError: no weights, a broken index, one that leaves the folder, a missing shard.
    """
    if is_there(folder / SINGLE_FILE):  # it wins over an index, as in the makers' own loader
        return None
    path = folder / INDEX_FILE
    if not is_there(path):
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        why = ", a pickle: it can run code and is never read, convert it" if pickles else ""
        found = pickles[0] + why if pickles else gguf_in(folder) or "neither"
        fail(folder, "", f"{SINGLE_FILE} or {INDEX_FILE}", found)
    index = read_object(path, CheckpointError).get("weight_map")
    if not isinstance(index, dict) or not index:
        fail(path, "weight_map", "an object from tensor names to file names", shown(index))
    for name, file in index.items():
        # Judged by its text alone: in a hub cache every genuine file is a link out of the folder.
        plain = isinstance(file, str) and not any(c in file for c in "/\\:\0")
        plain = plain and len(file.encode()) <= MAX_FILE_NAME
        if not plain or not file.endswith(".safetensors"):
            fail(path, name, "the name of a .safetensors file in the same folder", shown(file))
        if not is_there(folder / file):
            fail(folder / file, name, "the file, which the index names", "no such file")
    return index


def read_headers(folder: Path, index: Mapping[str, str] | None) -> dict[str, TensorEntry]:
    found: dict[str, TensorEntry] = {}
    for file in [SINGLE_FILE] if index is None else sorted(set(index.values())):
        path = folder / file
        with open_file(path) as header:
            for name in header.keys():  # noqa: SIM118  (not a mapping)
                told = file if index is None else index.get(name, f"no file ({INDEX_FILE})")
                if told != file and name != LM_HEAD:
                    fail(path, name, f"it in {told}", "it here")
                if told == file:
                    part = header.get_slice(name)
                    found[name] = TensorEntry(path, tuple(part.get_shape()), part.get_dtype(), name)
    for name, file in (index or {}).items():
        if name not in found:
            fail(folder / file, name, f"the tensor, which {INDEX_FILE} puts here", "nothing")
    return found


def take_packed(
    found: dict[str, TensorEntry], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, PackedEntry]:
    """Put one entry, as of a plain weight, in the place of those that stand for a quantized one.

    Raises:
        CheckpointError: weights with a zero point or another order of columns.
    """
    packed = {}
    for name in [n for n in shapes if f"{n}_scale" in found]:
        for strange in ("zero_point", "g_idx"):
            if f"{name}_{strange}" in found:
                file = found[f"{name}_{strange}"].file
                fail(file, f"{name}_{strange}", "a symmetric weight in its own order", "this")
        scale, values = found.pop(f"{name}_scale"), found.pop(f"{name}_packed", None)
        found.pop(f"{name}_shape", None)
        values = found.get(name) if values is None else values
        if values is None:
            fail(scale.file, name, f"it or {name}_packed beside its scale", "neither")
        packed[name] = PackedEntry(values, scale)
        found[name] = TensorEntry(values.file, shapes[name], "BF16", name)
    return packed


def check_entries(listing: Path, found: Mapping[str, TensorEntry], config: Plamo2Config) -> None:
    shapes = config.tensor_shapes
    missing = [name for name in shapes if name not in found]
    if missing:
        more = f" (and {len(missing) - 1} more are missing)" if missing[1:] else ""
        fail(listing, missing[0], f"shape {list(shapes[missing[0]])}", f"no such tensor{more}")
    for name, entry in found.items():
        if name not in shapes:
            kept = f"only the {len(shapes)} tensors that {CONFIG_FILE} calls for"
            fail(entry.file, name, kept, f"this extra one of shape {list(entry.shape)}")
        if entry.shape != shapes[name]:
            told = f"shape {list(shapes[name])} from {CONFIG_FILE}"
            fail(entry.file, name, told, f"{list(entry.shape)}{_layout(name, entry, shapes[name])}")
        if entry.code not in DTYPES:
            fail(entry.file, name, f"dtype {', '.join(DTYPES)}", entry.code)


def _layout(name: str, entry: TensorEntry, shape: tuple[int, ...]) -> str:
    """What is known of a wrong shape."""
    if not name.endswith("conv1d.weight") or entry.shape != (shape[0], shape[2], shape[1]):
        return ""
    return f" (MLX's order of axes: take {original_of(entry.file)}, or swap the last two)"


def open_file(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        _explain(path, error)


def _explain(path: Path, error: Exception) -> NoReturn:
    """Why a file cannot be opened as safetensors, in bytes and tensors, from its own header."""
    wanted = "a safetensors file of 8 bytes or more"
    if not is_file(path):
        fail(path, "", wanted, "a folder" if path.is_dir() else "no such file")
    size = path.stat().st_size
    if isinstance(error, OSError) or size < 8:
        fail(path, "", wanted, f"{size} bytes ({error})")
    with path.open("rb") as file:
        advice = pointer_advice(file.read(len(LFS_POINTER)))
        if advice is not None:
            fail(path, "", "a safetensors file", advice)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            told = f"a header of {length} bytes"
            fail(path, "", told, f"{size - 8}: truncated, or not a safetensors file")
        try:
            header = {k: v for k, v in json.loads(file.read(length)).items() if k[:2] != "__"}
            ends = {name: 8 + length + value["data_offsets"][1] for name, value in header.items()}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            fail(path, "", "a safetensors header", f"something else ({error})")
    end = max(ends.values(), default=8 + length)
    if end > size:
        cut = min((name for name in ends if ends[name] > size), key=lambda name: ends[name])
        fail(path, cut, f"a file of {end} bytes", f"{size}: it is truncated within this tensor")
    fail(path, "", f"a file of {end} bytes", f"{size} ({error})")
