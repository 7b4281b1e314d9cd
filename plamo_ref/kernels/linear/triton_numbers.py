# mypy: disallow-untyped-defs=False
"""From the bytes of a quantized weight to numbers, within a kernel.

Invariant: every byte becomes exactly the number that plamo_ref/quantization/weight.py says.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.quantization.quantize import TINY
from plamo_ref.quantization.weight import FP8, LARGEST, QuantizedTokens

LARGEST_FP8, LEAST = tl.constexpr(LARGEST["fp8"]), tl.constexpr(TINY)


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
def store_quantized(x, most, out_ptr, scale_ptr, inside, DECODE: tl.constexpr):
    """x, numbers of one token of which the largest is `most`, in e4m3, and its scale."""
    most = tl.maximum(most, LEAST)
    x = x * (LARGEST_FP8 / most)
    x = tl.minimum(tl.maximum(x, -LARGEST_FP8), LARGEST_FP8)
    value = encode_fp8(x) if DECODE else x.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr, value, mask=inside)
    tl.store(scale_ptr, most / LARGEST_FP8)


def empty_tokens(
    tokens: int, columns: int, dtype: torch.dtype, device: torch.device
) -> QuantizedTokens:
    """Memory for activations [tokens, columns] of `dtype` in e4m3."""
    values = torch.empty((tokens, columns), dtype=FP8, device=device)
    scale = torch.empty(tokens, dtype=torch.float32, device=device)
    return QuantizedTokens(values, scale, dtype)


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
