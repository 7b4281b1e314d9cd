"""A quantized weight, and activations quantized for one product.

Invariant: what is stored is exactly this; nothing keeps the tensor that it was made from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plamo_ref.quantization.schemes import Format
from plamo_ref.quantization.words import BITS, pack, unit_of, unpack

FP8 = torch.float8_e4m3fn  # no infinities; 448 is the largest number
LARGEST = {"fp8": 448.0, "int8": 127.0, "int4": 7.0}


@dataclass(frozen=True)
class QuantizedWeight:
    """values · scale ≈ a weight [out, in].

    Attributes:
        values: e4m3 [out, in]; of int8 and int4 words as bytes, uint8 [out, in · bits / 8], or
            int8 [out, in] where there is no unit (words.py).
        scale: float32 [out]; of int4 bfloat16 [out, in / group], where those of neighbouring rows
            are neighbours in memory: that is how a kernel asks for them.
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
    def unit(self) -> int:
        """Columns that are packed together; 0: none are."""
        return unit_of(self.format, self.shape[1], self.group)

    @property
    def numbers(self) -> Tensor:
        """Of int8 and int4 what is stored, int8 [out, in]."""
        return unpack(self.values, BITS[self.format], self.unit)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scale.nbytes

    def part(self, index: tuple[slice, ...]) -> "QuantizedWeight | None":
        """Some of the rows, or some of the columns, which keep the scale of the whole row; None:
        these are not whole groups of columns."""
        if len(index) == 1:
            return replace(self, values=self.values[index], scale=self.scale[index])
        start, stop, _ = index[1].indices(self.shape[1])
        scale, unit, columns = self.scale, self.unit, self.shape[1]
        if self.group:
            if start % self.group or stop % self.group:
                return None
            scale = scale[:, start // self.group : stop // self.group]
        its_unit = unit_of(self.format, stop - start, self.group)
        if its_unit == unit and not (unit and (start % unit or stop % unit)):
            size = self.values.shape[1]  # bytes
            values = self.values[:, start * size // columns : stop * size // columns]
        else:
            values = pack(self.numbers[:, start:stop], BITS[self.format], its_unit)
        return replace(self, values=values, scale=scale)

    @staticmethod
    def joined(parts: "Sequence[QuantizedWeight]") -> "QuantizedWeight":
        """One below the other; a copy that keeps nothing larger alive."""
        values = torch.cat([part.values.view(torch.uint8) for part in parts]).view(
            parts[0].values.dtype
        )
        scale = torch.cat([part.scale for part in parts])
        return replace(
            parts[0], values=values, scale=by_column(scale) if scale.dim() > 1 else scale
        )


def by_column(scale: Tensor) -> Tensor:
    """The same [out, groups], those of neighbouring rows side by side."""
    return scale.T.contiguous().T


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
