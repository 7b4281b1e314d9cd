"""Products with a quantized weight, and activations quantized for them.

    quantize_tokens(x)      scale = max |row| / 448, values = round(x / scale)        x [T, in]
    quantized_linear(x, W)  x Wᵀ with x and W as the numbers that they stand for
    … _parts, … _swiglu     as the products with a plain weight: see twin.py

Invariant: what a product computes depends on how its weight is stored, never on how many tokens
there are: a request's numbers are the same in any company.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.linear.swiglu import swiglu
from plamo_ref.quantization.quantize import TINY, dequantize
from plamo_ref.quantization.schemes import SCHEMES
from plamo_ref.quantization.weight import (
    FP8,
    LARGEST,
    Activations,
    QuantizedTokens,
    QuantizedWeight,
)


def quantize_tokens(x: Tensor, most: Tensor | None = None) -> QuantizedTokens:
    """x [T, in] in e4m3 with a scale for each token.

    Args:
        most: max |row| [T], float32, where x is a part of the rows; None: x is all of them.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    found = x.to(wide).abs().amax(1) if most is None else most.to(wide)
    found = found.clamp_min(TINY)
    largest = LARGEST["fp8"]
    values = (x.to(wide) * (largest / found)[:, None]).clamp(-largest, largest)
    return QuantizedTokens(values.to(FP8), (found / largest).float(), x.dtype)


def quantized_linear(x: Activations, weight: QuantizedWeight) -> Tensor:
    """x [T, in] · weight [out, in]ᵀ → [T, out]."""
    dtype = x.dtype
    wide = torch.promote_types(dtype, torch.float32)
    if isinstance(x, QuantizedTokens):
        numbers = x.values.to(wide) * x.scale.to(wide)[:, None]
    else:
        numbers = x.to(wide)
    return F.linear(numbers, dequantize(weight, wide)).to(dtype)


def quantized_linear_parts(x: Activations, weight: QuantizedWeight) -> Tensor:
    """The same as one part [1, T, out]."""
    return quantized_linear(x, weight)[None]


def quantized_linear_swiglu(
    x: Activations, weight: QuantizedWeight, quantize: bool = False
) -> Activations:
    """weight [2F, in], gate rows first → silu(gate) · up, [T, F].

    Args:
        quantize: it as `quantize_tokens` leaves it, for a product that wants it so.
    """
    made = swiglu(quantized_linear(x, weight))
    return quantize_tokens(made) if quantize else made


def check_scheme(name: str | None, kernels: str, device: torch.device) -> None:
    """Whether the table `kernels` can multiply there what a scheme of quantization stores.

    Raises:
        KernelError: they cannot; what can is named.
    """
    if name is None or kernels != "triton" or device.type != "cuda":
        return
    major, minor = torch.cuda.get_device_capability(device)
    if SCHEMES[name].quantized_activations and (major, minor) < (8, 9):
        raise KernelError(
            f"quantization={name!r} multiplies in e4m3, which this GPU (sm_{major}{minor}) "
            'does not have: take "fp8_weight_only", "int8" or "int4"'
        )
