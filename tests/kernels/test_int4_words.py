"""The instructions that spread two words of int4, carried out by hand: no interpreter runs them.

Invariant tested: each of the sixteen numbers is the weight that lies in its place.
"""

import random
import re
import struct

from plamo_ref.kernels.linear.triton_int4 import UNPACK


def bfloat16(bits: int) -> float:
    return struct.unpack(">f", struct.pack(">I", bits << 16))[0]


def prmt(a: int, b: int, select: int) -> int:
    source = a | b << 32
    picked = [source >> 8 * (select >> 4 * i & 7) & 255 for i in range(4)]
    return sum(byte << 8 * i for i, byte in enumerate(picked))


def carried_out(first: int, second: int) -> list[tuple[float, float]]:
    """The results in their order; of each, what comes from the first and from the second word."""
    held, results = {"$8": first, "$9": second}, {}

    def value(word: str) -> int:
        return held[word] if word in held else int(word, 0)

    text = str(getattr(UNPACK, "value", UNPACK))
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
        elif name == "lop3.b32":
            a, b, c, table = map(value, words)
            assert table == 0xEA  # (a and b) or c
            held[target] = a & b | c
        else:
            assert name == "fma.rn.bf16x2"
            parts = [(value(word) & 0xFFFF, value(word) >> 16) for word in words]
            results[int(target[1:])] = tuple(
                bfloat16(x) * bfloat16(y) + bfloat16(z) for x, y, z in zip(*parts, strict=True)
            )
    return [results[place] for place in range(8)]


def test_sixteen_numbers_are_the_weights_of_two_words():
    draw = random.Random(0)
    for _ in range(100):
        words = draw.getrandbits(32), draw.getrandbits(32)
        wanted = [tuple((word >> 4 * place & 15) - 8.0 for word in words) for place in range(8)]
        assert carried_out(*words) == wanted
