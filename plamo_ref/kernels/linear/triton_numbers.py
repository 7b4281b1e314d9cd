# mypy: disallow-untyped-defs=False
"""From the bytes of a quantized weight to numbers, within a kernel.

Invariant: every byte becomes exactly the number that plamo_ref/quantization/weight.py says.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.quantization.weight import FP8


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
