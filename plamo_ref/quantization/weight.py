"""A quantized weight, and activations quantized for one product.

int4: a byte has two weights v + 8, those of one column of each half of a group:

    group of 128   byte 0: columns 0 and 64 (its upper half)   …   byte 63: columns 63 and 127

so that whoever unpacks 64 bytes has two times 64 neighbours, and the activations that belong to
them are neighbours as well.

Invariant: what is stored is exactly this; nothing keeps the tensor that it was made from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plamo_ref.quantization.schemes import Format

FP8 = torch.float8_e4m3fn  # no infinities; 448 is the largest number
LARGEST = {"fp8": 448.0, "int8": 127.0, "int4": 7.0}


@dataclass(frozen=True)
class QuantizedWeight:
    """values · scale ≈ a weight [out, in].

    Attributes:
        values: e4m3 or int8 [out, in]; of int4 uint8 [out, in / 2].
        scale: float32 [out]; of int4 bfloat16 [out, in / group].
        group: columns that share a scale; 0: all of a row.
        quantized_activations: the product wants a `QuantizedTokens`.
    """

    values: Tensor
    scale: Tensor
    format: Format
    group: int = 0
    quantized_activations: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in] of the weight that this stands for."""
        rows, columns = self.values.shape
        return rows, columns * 2 if self.format == "int4" else columns

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scale.nbytes

    def part(self, index: tuple[slice, ...]) -> "QuantizedWeight | None":
        """Some of the rows, or some of the columns, which keep the scale of the whole row; None:
        these are not whole groups of columns."""
        if len(index) == 1:
            return replace(self, values=self.values[index], scale=self.scale[index])
        start, stop, _ = index[1].indices(self.shape[1])
        if not self.group:
            return replace(self, values=self.values[:, start:stop])
        if start % self.group or stop % self.group:
            return None
        values = self.values[:, start // 2 : stop // 2]
        scale = self.scale[:, start // self.group : stop // self.group]
        return replace(self, values=values, scale=scale)

    @staticmethod
    def joined(parts: "Sequence[QuantizedWeight]") -> "QuantizedWeight":
        """One below the other; a copy that keeps nothing larger alive."""
        values = torch.cat([part.values.view(torch.uint8) for part in parts]).view(
            parts[0].values.dtype
        )
        return replace(parts[0], values=values, scale=torch.cat([part.scale for part in parts]))


@dataclass(frozen=True)
class QuantizedTokens:
    """values · scale ≈ activations [T, in].

    Attributes:
        values: e4m3 [T, in].
        scale: float32 [T].
        dtype: of the activations, and of what is computed from them.
    """

    values: Tensor
    scale: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        return self.values.shape


Weight = Tensor | QuantizedWeight
Activations = Tensor | QuantizedTokens
