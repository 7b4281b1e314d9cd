"""From a weight to its quantized form and back.

    fp8, int8   scale = max |row| / largest number        value = round(weight / scale)
    int4        the scale of some below max |group| / 7.5 that leaves the least squared error

An int4 scale that clips its largest weight a little serves the other 127 better: rounding is the
error of all of them. Tried are CLIPS, one after the other.

Invariant: a weight is worked on in slices of its rows, so that whatever is needed meanwhile is
small beside it; what is returned shares no memory with it.

Built in notebooks/15_fewer_bytes.ipynb.
"""

import torch
from torch import Tensor

from plamo_ref.quantization.schemes import Scheme, group_of, is_quantized
from plamo_ref.quantization.weight import (
    FP8,
    LARGEST,
    QuantizedWeight,
    Weight,
    by_column,
)
from plamo_ref.quantization.words import pack, unit_of

AT_ONCE = 1 << 22  # weights of a slice
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
TINY = 1e-30  # the scale's numerator of a row of zeros


def quantize(weight: Tensor, scheme: Scheme) -> QuantizedWeight:
    """weight [out, in] as `scheme` stores it, on the same device."""
    rows, columns = weight.shape
    group, wide = group_of(columns, scheme), torch.promote_types(weight.dtype, torch.float32)
    most = _largest(weight).to(wide) if scheme.per_tensor else None
    if scheme.format == "int4":
        values = weight.new_empty((rows, columns // 2), dtype=torch.uint8)
        scale = by_column(weight.new_empty((rows, columns // group), dtype=torch.bfloat16))
    else:
        unit = unit_of(scheme.format, columns, 0)
        kind = FP8 if scheme.format == "fp8" else torch.uint8 if unit else torch.int8
        values = weight.new_empty((rows, columns), dtype=kind)
        scale = weight.new_empty(rows, dtype=torch.float32)
    step = max(1, AT_ONCE // max(columns, 1))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        if scheme.format == "int4":
            values[part], scale[part] = _int4(weight[part].to(wide), group)
        else:
            values[part], scale[part] = _rows(weight[part].to(wide), scheme, most)
    return QuantizedWeight(values, scale, scheme.format, group, scheme.quantized_activations)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] that this stands for."""
    wide = torch.promote_types(dtype, torch.float32)
    if not weight.group:
        numbers = weight.values if weight.format == "fp8" else weight.numbers
        return (numbers.to(wide) * weight.scale.to(wide)[:, None]).to(dtype)
    numbers = weight.numbers.unflatten(1, (-1, weight.group))
    return (numbers.to(wide) * weight.scale.to(wide)[:, :, None]).flatten(1).to(dtype)


def stored(weight: Tensor, name: str, scheme: Scheme | None) -> Weight:
    """The tensor with the checkpoint's `name` as it is kept on the device."""
    if scheme is None or not is_quantized(name, tuple(weight.shape), scheme):
        return weight
    return quantize(weight, scheme)


def _largest(weight: Tensor) -> Tensor:
    """max |weight|, without a temporary of its size."""
    low, high = weight.aminmax()
    return torch.maximum(-low, high)


def _rows(weight: Tensor, scheme: Scheme, most: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values and scales of some rows."""
    largest = LARGEST[scheme.format]
    most = weight.abs().amax(1) if most is None else most.expand(weight.shape[0])
    scale = (most.clamp_min(TINY) / largest).float()
    values = (weight / scale.to(weight.dtype)[:, None]).clamp_(-largest, largest)
    if scheme.format == "fp8":
        return values, scale
    return pack(values.round_(), 8, unit_of("int8", weight.shape[1], 0)), scale


def _int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Packed values and scales of some rows."""
    grouped = weight.unflatten(1, (-1, group))
    most = grouped.abs().amax(2).clamp_min(TINY)
    best: Tensor | None = None
    for clip in CLIPS:
        scale = (most * (clip / 7.5)).bfloat16()
        error = (
            (_rounded(grouped, scale) * scale.to(weight.dtype)[:, :, None] - grouped)
            .square_()
            .sum(2)
        )
        if best is None:
            best, least = scale, error
            continue
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    assert best is not None
    return pack(_rounded(grouped, best).flatten(1), 4, group), best


def _rounded(grouped: Tensor, scale: Tensor) -> Tensor:
    return (grouped / scale.to(grouped.dtype)[:, :, None]).round_().clamp_(-8, 7)
