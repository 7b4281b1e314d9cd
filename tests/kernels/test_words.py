"""The instructions that spread a word of int4 or int8, carried out by hand: no interpreter runs
them.

Invariant tested: each of the numbers is a 64th of the weight that lies in its place, without
rounding, and it comes from the half of a word that its place in a pair says.
"""

import random
import re
import struct
from fractions import Fraction

import pytest

from plamo_ref.kernels.linear.triton_words import UNPACK4, UNPACK8

UNPACK = {4: UNPACK4, 8: UNPACK8}


def bfloat16(bits: int) -> Fraction:
    """Denormal numbers too: the lowest places are steps of 2^-133."""
    return Fraction(struct.unpack(">f", struct.pack(">I", bits << 16))[0])


def is_bfloat16(number: Fraction) -> bool:
    bits = struct.unpack(">I", struct.pack(">f", float(number)))[0]
    return bits & 0xFFFF == 0 and bfloat16(bits >> 16) == number


def prmt(a: int, b: int, select: int) -> int:
    source = a | b << 32
    picked = [source >> 8 * (select >> 4 * i & 7) & 255 for i in range(4)]
    return sum(byte << 8 * i for i, byte in enumerate(picked))


def carried_out(bits: int, word: int) -> list[tuple[Fraction, Fraction]]:
    """The results in their order; of each, what is in the lower and in the upper half."""
    held, results = {f"${16 // bits}": word}, {}

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
            made = [bfloat16(x) * bfloat16(y) + bfloat16(z) for x, y, z in zip(*parts, strict=True)]
            assert all(map(is_bfloat16, made))
            results[int(target[1:])] = made[0], made[1]
    return [results[place] for place in range(16 // bits)]


@pytest.mark.parametrize("bits", UNPACK)
def test_a_word_becomes_its_weights_without_rounding(bits):
    draw, mask, offset = random.Random(0), (1 << bits) - 1, 1 << bits - 1
    words = [draw.getrandbits(32) for _ in range(200)]
    for word in [*words, *(byte * 0x01010101 for byte in range(256))]:
        wanted = [
            tuple(Fraction((word >> bits * p + half & mask) - offset, 64) for half in (0, 16))
            for p in range(16 // bits)
        ]
        assert carried_out(bits, word) == wanted
