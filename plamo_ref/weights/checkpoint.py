"""One folder of weights: what it must hold, reading it tensor by tensor, writing the same format.

Invariant: a `Checkpoint` that exists has exactly the tensors that its config.json calls for, each
of the right shape and of a floating dtype; only safetensors is read, never a pickle, never code.
Built in notebooks/01_plamo2_anatomy.ipynb.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from plamo_ref.config import Plamo2Config
from plamo_ref.intake.checkpoint_files import (
    CONFIG_FILE,
    DTYPES,
    INDEX_FILE,
    LM_HEAD,
    SINGLE_FILE,
    CheckpointError,
    PackedEntry,
    TensorEntry,
    check_entries,
    check_folder,
    fail,
    open_file,
    read_headers,
    read_index,
    take_packed,
)
from plamo_ref.intake.generation_file import GenerationFile
from plamo_ref.intake.vision import language_part
from plamo_ref.quantization.quantize import dequantize
from plamo_ref.quantization.weight import QuantizedWeight
from plamo_ref.weights.device import is_finite, read_ahead
from plamo_ref.weights.packed import read_packed
from plamo_ref.weights.save import save

READERS = 4  # one thread copies from the file's pages more slowly than a GPU's bus can take it

__all__ = ["Checkpoint", "CheckpointError", "save"]


@dataclass(frozen=True)
class Checkpoint:
    """A checked folder. Only headers have been read: tensors leave the disk when asked for."""

    folder: Path
    config: Plamo2Config
    generation: GenerationFile
    entries: Mapping[str, TensorEntry]  # in the order of the forward pass
    packed: Mapping[str, PackedEntry] = field(default_factory=dict)  # of these: the quantized ones

    @classmethod
    def open(cls, folder: str | Path) -> "Checkpoint":
        """Read the headers in `folder` and hold them against its config.json.

        Tied models may carry an `lm_head.weight` all the same: it is ignored, as a vision tower is.

        Raises:
            ConfigError: config.json is missing, broken, or not that of a PLaMo 2.
            CheckpointError: any other defect.
        """
        folder = Path(folder)
        check_folder(folder)
        config = Plamo2Config.from_file(folder / CONFIG_FILE)
        generation = GenerationFile.read(folder, config)
        index = read_index(folder)
        found = language_part(read_headers(folder, index))
        if config.tie_word_embeddings:
            found.pop(LM_HEAD, None)
        packed = take_packed(found, config.tensor_shapes) if config.quantization else {}
        check_entries(folder / (SINGLE_FILE if index is None else INDEX_FILE), found, config)
        entries = {n: found[n] for n in config.tensor_shapes}
        return cls(folder, config, generation, entries, packed)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(self.shape(n).numel() * self.dtype(n).itemsize for n in self.entries)

    def shape(self, name: str) -> torch.Size:
        return torch.Size(self._entry(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype on disk."""
        dtype: torch.dtype = getattr(torch, DTYPES[self._entry(name).code])
        return dtype

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """generation_config.json as it is; empty if there is none."""
        return self.generation.raw

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a generation: generation_config.json's eos, else that of config.json."""
        return self.generation.stop_token_ids

    def read(
        self,
        name: str,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        check_finite: bool = True,
    ) -> torch.Tensor:
        """A whole tensor, cast to `dtype` (None: as stored) and moved to `device`.

        Raises:
            CheckpointError: unknown name, or NaN or infinity in it (unless check_finite is false).
        """
        where = (slice(None),)
        return self.read_slice(name, where, dtype=dtype, device=device, check_finite=check_finite)

    def read_slice(
        self,
        name: str,
        index: slice | tuple[slice, ...],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        check_finite: bool = True,
    ) -> torch.Tensor:
        """`tensor[index]` for slices of step 1, contiguous; the rest stays on the disk.

        A quantized weight is made plain.
        """
        entry = self._entry(name)
        index = index if isinstance(index, tuple) else (index,)
        if name in self.packed:
            whole = dequantize(self.read_quantized(name), dtype or torch.float32)
            return whole[index].contiguous().to(device)
        plain = all(isinstance(part, slice) and part.step in (None, 1) for part in index)
        if not plain or len(index) > len(entry.shape):
            fail(entry.file, name, f"up to {len(entry.shape)} slices of step 1", f"{index}")
        with open_file(entry.file) as file:
            view = file.get_slice(entry.name)[index]  # pages of the file, mapped, not yet read
            # A copy, always: a view would keep the whole file mapped as long as it lives.
            kind = dtype or view.dtype
            tensor = view.to(kind, copy=True, memory_format=torch.contiguous_format)
            if check_finite:
                _check_finite(entry, name, index, tensor, view)
        return tensor.to(device)

    def read_quantized(self, name: str, device: torch.device | str = "cpu") -> QuantizedWeight:
        """A weight of a quantized folder, as it is stored.

        Raises:
            CheckpointError: its tensors do not fit, or NaN or infinity in it.
        """
        return read_packed(self.packed[name], self.config.quantization, self.shape(name), device)

    def tensors(
        self,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        progress: bool = True,
        readers: int | None = None,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors in the order of the forward pass.

        Args:
            readers: threads that read ahead, through page-locked memory; 0: one tensor in memory
                at a time. None: some for a GPU, none else.
        """
        device = torch.device(device)
        readers = (READERS if device.type == "cuda" else 0) if readers is None else readers
        readers = 0 if self.packed else readers
        with tqdm(
            total=self.nbytes, unit="B", unit_scale=True, desc="weights", disable=not progress
        ) as bar:
            if readers:
                found = read_ahead(self.names, self._pages, dtype, device, readers)
                for name, tensor in found:
                    if not is_finite(tensor):
                        self.read(name, dtype=dtype)  # says where
                    yield name, tensor
                    bar.update(self.shape(name).numel() * self.dtype(name).itemsize)
                return
            for name in self.entries:
                # Not bound to a local name: that would keep it alive while the next one is read.
                yield name, self.read(name, dtype=dtype, device=device)
                bar.update(self.shape(name).numel() * self.dtype(name).itemsize)

    def _pages(self, name: str) -> torch.Tensor:
        entry = self._entry(name)
        with open_file(entry.file) as file:
            view: torch.Tensor = file.get_slice(entry.name)[:]
        return view

    def _entry(self, name: str) -> TensorEntry:
        if name not in self.entries:
            fail(self.folder, name, f"one of the {len(self.entries)} tensors", "an unknown name")
        return self.entries[name]


def _check_finite(
    entry: TensorEntry,
    name: str,
    index: tuple[slice, ...],
    tensor: torch.Tensor,
    source: torch.Tensor,
) -> None:
    """Raise if `tensor`, which is `source` (the part `index` of the stored one) cast, is not."""
    if is_finite(tensor):
        return
    bad = (~tensor.isfinite()).nonzero()
    value, at = source[tuple(bad[0])].item(), bad[0].tolist()
    for axis, part in enumerate(index):
        at[axis] += part.indices(entry.shape[axis])[0]
    asked, found = f"finite numbers in {tensor.dtype}", f"{value} at {at} ({len(bad)} such in all)"
    fail(entry.file, name, asked, found)
