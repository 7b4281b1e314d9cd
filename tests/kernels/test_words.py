"""The instructions that spread a word of int4 or int8, carried out by hand: no interpreter runs
them.

Invariant tested: each of the numbers is what its weight stands for, of int8 a 64th of it without
rounding, of int4 2^-21 of it times its scale, rounded once; and it comes from the half of a word
that its place in a pair says.
"""

import math
import random
import re
import struct
from collections.abc import Iterator
from fractions import Fraction

import pytest

from plamo_ref.kernels.linear.triton_words import UNPACK4, UNPACK8

UNPACK = {4: UNPACK4, 8: UNPACK8}


def bfloat16(bits: int) -> Fraction:
    """Denormal numbers too: the lowest places are steps of 2^-133."""
    return Fraction(struct.unpack(">f", struct.pack(">I", bits << 16))[0])


def bits_of(number: Fraction) -> int:
    """Of a number that is a bfloat16."""
    bits = struct.unpack(">I", struct.pack(">f", float(number)))[0]
    assert bits & 0xFFFF == 0
    assert bfloat16(bits >> 16) == number
    return bits >> 16


def nearest(number: Fraction) -> Fraction:
    """The bfloat16 that it is rounded to; of two, the one that is even."""
    digits = math.frexp(float(number))[1] - 1  # floor(log2(|number|)); all are exact as float64
    step = Fraction(2) ** max(digits - 7, -133)
    return round(number / step) * step


def prmt(a: int, b: int, select: int) -> int:
    source = a | b << 32
    picked = [source >> 8 * (select >> 4 * i & 7) & 255 for i in range(4)]
    return sum(byte << 8 * i for i, byte in enumerate(picked))


def carried_out(bits: int, word: int, scales: int) -> list[tuple[Fraction, Fraction]]:
    """The results in their order; of each, what is in the lower and in the upper half."""
    held = {f"${16 // bits}": word, f"${16 // bits + 1}": scales}

    def value(word: str) -> int:
        return held[word] if word in held else int(word, 0)

    text = re.sub("//.*", "", str(getattr(UNPACK[bits], "value", UNPACK[bits])))
    for line in re.findall(r"[a-z][\w.]* [^;{}]+(?=;)", text):
        name, _, rest = line.partition(" ")
        target, *words = [word.strip() for word in rest.split(",")]
        if name == "reg":
            continue
        if name == "mov.b32":
            held[target] = value(words[0])
        elif name == "prmt.b32":
            held[target] = prmt(*map(value, words))
        elif name == "shr.b32":
            held[target] = value(words[0]) >> value(words[1])
        elif name == "and.b32":
            held[target] = value(words[0]) & value(words[1])
        else:
            assert name == "fma.rn.bf16x2"
            parts = [(value(word) & 0xFFFF, value(word) >> 16) for word in words]
            made = [
                nearest(bfloat16(x) * bfloat16(y) + bfloat16(z))
                for x, y, z in zip(*parts, strict=True)
            ]
            held[target] = bits_of(made[0]) | bits_of(made[1]) << 16
    results = [held[f"${place}"] for place in range(16 // bits)]
    return [(bfloat16(both & 0xFFFF), bfloat16(both >> 16)) for both in results]


def trials() -> Iterator[tuple[int, int]]:
    """Words, and a scale in both halves of another."""
    draw = random.Random(0)
    words = [draw.getrandbits(32) for _ in range(200)]
    for word in [*words, *(byte * 0x01010101 for byte in range(256))]:
        yield word, 0x00010001 * (draw.randrange(110, 130) << 7 | draw.getrandbits(7))


@pytest.mark.parametrize("bits", UNPACK)
def test_a_word_becomes_its_weights_rounded_once_at_the_most(bits):
    mask, offset = (1 << bits) - 1, 1 << bits - 1
    for word, scales in trials():
        unit = bfloat16(scales & 0xFFFF) / 2**21 if bits == 4 else Fraction(1, 64)
        exact = [
            tuple(unit * ((word >> bits * p + half & mask) - offset) for half in (0, 16))
            for p in range(16 // bits)
        ]
        wanted = [tuple(map(nearest, pair)) for pair in exact]
        assert wanted == exact or bits == 4
        assert carried_out(bits, word, scales) == wanted
