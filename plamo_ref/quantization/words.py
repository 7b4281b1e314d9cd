"""How int4 and int8 weights lie in words of 32 bits: where a GPU's matrix unit wants them.

The matrix unit multiplies 16 columns at a time, and of a row four threads have four numbers each:
thread q has the columns 2q, 2q + 1, 2q + 8 and 2q + 9. So four neighbouring words are one thread's,
and the halves of a word are neighbouring columns:

    column  k = 128 / bits · word + 8 · place + 2 · thread + half
    lies in word w · thread + word of its unit, from bit 16 · half + bits · place on, as v + offset

A unit is a group of int4, 128 columns at most, or 64 columns of int8: w = 4 words for each thread.
Rows that are no whole number of these have smaller ones, and rows of int8 that 16 does not divide
stay plain.

Invariant: what was packed comes back, and a unit is where its columns are.
"""

import math

import torch
from torch import Tensor

from plamo_ref.quantization.schemes import Format

BITS = {"int8": 8, "int4": 4}
LARGEST_UNIT, LEAST_UNIT = 64, 16  # columns of int8


def unit_of(kind: Format, columns: int, group: int) -> int:
    """Columns that are packed together in rows of so many, of int4 a group; 0: none are."""
    if kind == "int4":
        return group
    unit = math.gcd(columns, LARGEST_UNIT) if kind == "int8" else 0
    return unit if unit >= LEAST_UNIT else 0


def pack(numbers: Tensor, bits: int, unit: int) -> Tensor:
    """Whole numbers [out, in], each with its sign in so many bits → words as bytes, uint8
    [out, in · bits / 8]; without a unit int8 [out, in]."""
    if not unit:
        return numbers.to(torch.int8).contiguous()
    places = 16 // bits
    unsigned = (numbers + (1 << bits - 1)).to(torch.uint8)
    unsigned = unsigned.unflatten(1, (-1, unit // (8 * places), places, 4, 2))
    ordered = unsigned.permute(0, 1, 4, 2, 5, 3)  # unit, thread, word, half, place
    if bits == 8:
        return ordered.flatten(1)
    low, high = ordered.unflatten(5, (2, 2)).unbind(6)
    return (low | high << 4).flatten(1)


def unpack(values: Tensor, bits: int, unit: int) -> Tensor:
    """The way back; int8 [out, in]."""
    if not unit:
        return values
    if bits == 4:
        values = torch.stack((values & 15, values >> 4), dim=2).flatten(1)
    places = 16 // bits
    ordered = values.unflatten(1, (-1, 4, unit // (8 * places), 2, places))
    unsigned = ordered.permute(0, 1, 3, 5, 2, 4).flatten(1)
    return (unsigned.to(torch.int16) - (1 << bits - 1)).to(torch.int8)
