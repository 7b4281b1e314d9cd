# mypy: disallow-untyped-defs=False
"""From the bytes of a quantized weight to numbers, within a kernel.

Invariant: every byte becomes exactly the number that plamo_ref/quantization/weight.py says.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.quantization.weight import FP8

UNPACK = """{
    .reg .b32 a, b, one, less;
    mov.b32 one, 0x3F803F80;
    mov.b32 less, 0xC308C308;
    shr.b32 b, $2, SHIFT;
    prmt.b32 a, b, 0, 0x4140;
    prmt.b32 b, b, 0, 0x4342;
    lop3.b32 a, a, 0x000F000F, 0x43004300, 0xEA;
    lop3.b32 b, b, 0x000F000F, 0x43004300, 0xEA;
    fma.rn.bf16x2 $0, a, one, less;
    fma.rn.bf16x2 $1, b, one, less;
}"""
LOWER_HALVES = tl.constexpr(UNPACK.replace("SHIFT", "0"))
UPPER_HALVES = tl.constexpr(UNPACK.replace("SHIFT", "4"))


@triton.jit
def decode_fp8(byte):
    """e4m3 → float32, with integers alone. Moved to a float's place, an exponent is too small by
    120; numbers below the least normal one come out right as well."""
    bits = byte.to(tl.int32)
    bits = ((bits & 0x7F) << 20) | ((bits & 0x80) << 24)
    return bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2 to the 120th


@triton.jit
def encode_fp8(x):
    """float32 of at most 448 → e4m3, with integers alone; rounded to the nearest, to even ones.

    2 to the -120th times x has e4m3's exponent; what is below the last of its bits is rounded by
    the addition of a half of that bit (a little less, where it is 0).
    """
    scaled = tl.abs(x) * 7.52316384526264e-37
    bits = scaled.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20
    return (bits | tl.where(x < 0, 0x80, 0)).to(tl.uint8)


@triton.jit
def numbers(stored, KIND: tl.constexpr, DECODE: tl.constexpr):
    """What is stored, as numbers of a kind."""
    return (decode_fp8(stored) if DECODE else stored).to(KIND)


@triton.jit
def packed_numbers(packed, UPPER: tl.constexpr, KIND: tl.constexpr, ASM: tl.constexpr):
    """The weights in one half of each byte of int4, as numbers of a kind.

    A bfloat16 with the bits 0x430n is 128 + n: four bytes are spread, completed and lowered by
    136 (UNPACK) in six instructions, for four weights.
    """
    if ASM and tl.bfloat16 == KIND:
        number = tl.inline_asm_elementwise(
            UPPER_HALVES if UPPER else LOWER_HALVES,
            "=r,=r,r",
            [packed],
            dtype=tl.bfloat16,
            is_pure=True,
            pack=4,
        )
    else:
        half = packed >> 4 if UPPER else packed & 15
        number = (half.to(tl.int32) - 8).to(KIND)
    return number


def as_stored(values: Tensor) -> tuple[Tensor, bool]:
    """Values as a kernel takes them, and whether it has to decode e4m3 by itself."""
    if values.dtype != FP8 or knows_fp8(values.device):
        return values, False
    return values.view(torch.uint8), True


def knows_fp8(device: torch.device) -> bool:
    """Whether kernels there can have e4m3: GPUs from Ada on, and not the interpreter."""
    if device.type == "meta":  # compiled for the GPU that is here, or for a new one
        return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (8, 9)
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
