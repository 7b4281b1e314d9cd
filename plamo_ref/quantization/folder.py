"""A quantized weight as tensors of a file, in compressed-tensors' convention.

    fp8     weight [out, in] e4m3                            weight_scale [out, 1], of a tensor [1]
    int8    weight_packed [out, in / 4] int32, of v + 128    weight_scale [out, 1]
    int4    weight_packed [out, in / 8] int32, of v + 8      weight_scale [out, in / group]

An int32 has neighbouring columns, the first one in its lowest bits; weight_shape [2] beside it says
[out, in]. int8 is also found as `weight` itself. On the device a word has other columns (words.py),
so that it is packed anew when it comes and when it goes.

Invariant: what was written is read back bit by bit.
"""

import torch
from torch import Tensor

from plamo_ref.quantization.schemes import Scheme
from plamo_ref.quantization.weight import FP8, QuantizedWeight, by_column
from plamo_ref.quantization.words import BITS, pack, unit_of

GROUPS = (32, 64, 128)  # columns that may share a scale of int4


def to_tensors(name: str, weight: QuantizedWeight, scheme: Scheme) -> dict[str, Tensor]:
    """The tensors that stand for the one with the checkpoint's `name`."""
    if scheme.per_tensor:
        scale = weight.scale[:1]
    else:
        scale = weight.scale if weight.group else weight.scale[:, None]
    scale = scale.contiguous()
    if weight.format == "fp8":
        return {name: weight.values, f"{name}_scale": scale}
    shape = torch.tensor(weight.shape)
    packed = to_words(weight.numbers, BITS[weight.format])
    return {f"{name}_packed": packed, f"{name}_scale": scale, f"{name}_shape": shape}


def from_tensors(values: Tensor, scale: Tensor, columns: int, scheme: Scheme) -> QuantizedWeight:
    """The weight of `columns` columns that they stand for. Scales keep their precision, but for
    int4's, which are bfloat16 on the device."""
    rows, numbers = values.shape[0], values
    if values.dtype == torch.int32:
        numbers = from_words(values, BITS[scheme.format])[:, :columns]
    if scheme.format == "int4":
        group = columns // scale.shape[1]
        return QuantizedWeight(pack(numbers, 4, group), by_column(scale.bfloat16()), "int4", group)
    scale = scale.float().reshape(-1).expand(rows).contiguous()
    if scheme.format == "int8":
        numbers = pack(numbers, 8, unit_of("int8", columns, 0))
    values = numbers.contiguous()
    return QuantizedWeight(values, scale, scheme.format, 0, scheme.quantized_activations)


def obstacle(values: Tensor, scale: Tensor, rows: int, columns: int, scheme: Scheme) -> str:
    """Why tensors do not stand for a weight [rows, columns] of the scheme; "" if they do."""
    kinds = (FP8,) if scheme.format == "fp8" else (torch.int32, torch.int8)
    if values.dtype not in kinds or (scheme.format == "int4" and values.dtype != torch.int32):
        return f"a weight of {values.dtype}"
    there = columns
    if values.dtype == torch.int32:
        there = -(-columns * BITS[scheme.format] // 32)
    if tuple(values.shape) != (rows, there):
        return f"shape {list(values.shape)}, not {[rows, there]}"
    if scheme.format == "int4":
        fits = scale.dim() == 2 and scale.shape[0] == rows and scale.shape[1] > 0
        if not fits or columns % scale.shape[1] or columns // scale.shape[1] not in GROUPS:
            return f"scales of shape {list(scale.shape)}: groups of {GROUPS} columns can be had"
    elif scale.numel() not in (1, rows):
        return f"scales of shape {list(scale.shape)}, not {[rows, 1]} or [1]"
    return ""


def to_words(numbers: Tensor, bits: int) -> Tensor:
    """Whole numbers [out, in] of so many bits → int32, the first column in the lowest bits."""
    count = 32 // bits
    missing = -numbers.shape[1] % count
    unsigned = torch.nn.functional.pad(numbers.long() + (1 << bits - 1), (0, missing))
    words = torch.zeros(numbers.shape[0], unsigned.shape[1] // count, dtype=torch.int64)
    words = words.to(numbers.device)
    for place in range(count):
        words |= unsigned[:, place::count] << bits * place
    return words.to(torch.int32)  # the highest bit is a sign


def from_words(words: Tensor, bits: int) -> Tensor:
    """The way back; int8 [out, in], with the columns that were added."""
    places = [words >> bits * place & (1 << bits) - 1 for place in range(32 // bits)]
    return (torch.stack(places, 2).flatten(1) - (1 << bits - 1)).to(torch.int8)
