"""Products with a quantized weight: as fast as its fewer bytes can be read.

Formulas and twins: plamo_ref/kernels/linear/quantized.py. The kernels: triton_product.py, and of
int4 and int8 those that triton_words_product.py chooses from.

    tokens      e4m3 activations            plain activations, e4m3     … int4 or int8
    to 128      the kernel                  the kernel                  the kernels
    to 256      the library's fp8 product   the kernel                  the kernels
    to 1024     the library's fp8 product   made plain                  the kernels
    more        the library's fp8 product   made plain                  made plain

A weight made plain by `dequantize` is the library's to multiply with.

Invariant: what is computed is the same on each of these ways.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import (
    Config,
    has_wgmma,
    launch,
    pick,
    power_of_two,
    precision,
    with_unit_stride,
)
from plamo_ref.kernels.linear import triton_swiglu as triton_mlp
from plamo_ref.kernels.linear.triton import LEAST_TOKENS, parts_of
from plamo_ref.kernels.linear.triton_dequantize import dequantize, quantize_tokens
from plamo_ref.kernels.linear.triton_numbers import as_stored
from plamo_ref.kernels.linear.triton_product import quantized_linear_kernel
from plamo_ref.kernels.linear.triton_words_product import parts_of_many, words_product
from plamo_ref.quantization.weight import Activations, QuantizedTokens, QuantizedWeight

# Measured on an H200 by benchmarks/quantized_sweep.py, but for int8 and int4 with SwiGLU.
# Size: tokens. A block is rows of W, a tile columns of one loop iteration, of int4 at most a unit.
CONFIGS = {
    "fp8": (
        Config(up_to=64, block=64, warps=4, stages=4, tile=256),
        Config(up_to=128, block=128, warps=8, stages=5, tile=128),
    ),
    "fp8 as numbers": (  # its bytes become numbers in registers
        Config(up_to=16, block=64, warps=4, stages=5, tile=128),
        Config(up_to=64, block=64, warps=4, stages=4, tile=128),
        Config(up_to=128, block=64, warps=4, stages=4, tile=128),
    ),
    "int8": (
        Config(up_to=16, block=32, warps=4, stages=4, tile=64, slices=4),
        Config(up_to=32, block=64, warps=4, stages=6, tile=128),
        Config(up_to=128, block=128, warps=8, stages=4, tile=128),
        Config(up_to=1024, block=128, warps=8, stages=3, tile=128, programs=264),
    ),
    "int4": (
        Config(up_to=16, block=32, warps=4, stages=4, tile=128, programs=512, slices=4),
        Config(up_to=128, block=128, warps=8, stages=4, tile=128),
        Config(up_to=1024, block=128, warps=8, stages=3, tile=128, programs=264),
    ),
}
SWIGLU_CONFIGS = {  # two accumulators, or half a block's rows; beyond the last row two operations
    "fp8": (
        Config(up_to=32, block=128, warps=8, stages=3, tile=256),
        Config(up_to=64, block=128, warps=8, stages=5, tile=128),
    ),
    "fp8 as numbers": (
        CONFIGS["fp8 as numbers"][0],
        Config(up_to=64, block=64, warps=8, stages=4, tile=128),
        Config(up_to=128, block=64, warps=8, stages=3, tile=128),
    ),
    "int8": (
        Config(up_to=16, block=32, warps=2, stages=8, tile=64, slices=2),
        Config(up_to=128, block=128, warps=8, stages=4, tile=128),
        Config(up_to=1024, block=128, warps=8, stages=3, tile=128),
    ),
    "int4": (
        Config(up_to=16, block=64, warps=2, stages=4, tile=128, slices=2),
        Config(up_to=64, block=128, warps=8, stages=4, tile=128),
        Config(up_to=128, block=256, warps=8, stages=3, tile=128),
        Config(up_to=1024, block=128, warps=8, stages=3, tile=128),
    ),
}
BLOCK_T = 128  # tokens of a tile, at most
MANY, MANY_FOR_WORDS = 256, 1024  # tokens from which on the library multiplies


def quantized_linear(x: Activations, weight: QuantizedWeight, *, pdl: bool = False) -> Tensor:
    """x [T, in], weight [out, in] → [T, out]."""
    if _many(x, weight):
        return _library(x, weight)
    return _few_tokens(x, weight, parts=1, pdl=pdl)[0]


def quantized_linear_parts(x: Activations, weight: QuantizedWeight, *, pdl: bool = False) -> Tensor:
    """x [T, in], weight [out, in] → [parts, T, out]; float32 if there are several."""
    if _many(x, weight):
        return _library(x, weight)[None]
    tokens, config = x.shape[0], pick(CONFIGS[_kind(x, weight)], x.shape[0])
    if weight.unit and tokens > BLOCK_T:
        parts = parts_of_many(weight, config, tokens)
    else:
        parts = parts_of(*weight.shape, config, tokens) if tokens <= BLOCK_T else 1
    return _few_tokens(x, weight, parts, pdl=pdl)


def quantized_linear_swiglu(
    x: Activations, weight: QuantizedWeight, quantize: bool = False, *, pdl: bool = False
) -> Activations:
    """x [T, in], weight [2F, in], gate rows first → [T, F].

    Args:
        quantize: it as `quantize_tokens` would leave it. The scale is that of a whole row, which
            SwiGLU has where it is a pass of its own, and no program of a product has.
    """
    configs = SWIGLU_CONFIGS.get(_kind(x, weight))
    if configs is None or x.shape[0] > configs[-1].up_to or _many(x, weight):
        product = quantized_linear_parts(x, weight, pdl=pdl)
        if quantize:
            return triton_mlp.swiglu_quantized(product, x.dtype, pdl=pdl)
        return triton_mlp.swiglu_parts(product, x.dtype, pdl=pdl)
    made = _few_tokens(x, weight, parts=1, swiglu=True, pdl=pdl)[0]
    return quantize_tokens(made, pdl=pdl) if quantize else made


def _kind(x: Activations, weight: QuantizedWeight) -> str:
    """Which tables are for them."""
    if weight.unit:
        return weight.format
    is_fp8 = isinstance(x, QuantizedTokens) and not as_stored(weight.values)[1]
    return "fp8" if is_fp8 and x.dtype == torch.bfloat16 else "fp8 as numbers"


def _many(x: Activations, weight: QuantizedWeight) -> bool:
    """Whether the library multiplies. Its fp8 product gives bfloat16, from sizes that 16 divides;
    it is the better one earlier, for it needs no plain weight."""
    if not isinstance(x, QuantizedTokens):
        return x.shape[0] > (MANY_FOR_WORDS if weight.unit else MANY)
    aligned = not any(size % 16 for size in weight.shape)
    return x.shape[0] > BLOCK_T and aligned and x.dtype == torch.bfloat16


def _library(x: Activations, weight: QuantizedWeight) -> Tensor:
    """[T, out]."""
    if weight.values.is_meta:  # the library compiles nothing, and not every version knows the shape
        return torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device="meta")
    if not isinstance(x, QuantizedTokens):
        return F.linear(x, dequantize(weight, x.dtype))
    out: Tensor = F.scaled_mm(
        x.values,
        weight.values.T,
        x.scale[:, None],
        F.ScalingType.RowWise,
        weight.scale[None],
        F.ScalingType.RowWise,
        output_dtype=x.dtype,
        use_fast_accum=True,
    )
    return out


def _few_tokens(
    x: Activations,
    weight: QuantizedWeight,
    parts: int,
    *,
    swiglu: bool = False,
    pdl: bool = False,
) -> Tensor:
    """The product in parts: [parts, T, out]."""
    (tokens, columns), rows = x.shape, weight.shape[0] // (2 if swiglu else 1)
    quantized = isinstance(x, QuantizedTokens)
    given = x.values if isinstance(x, QuantizedTokens) else x
    if weight.shape[1] != columns or weight.values.stride(1) != 1:
        raise KernelError(
            f"quantized_linear: x {list(x.shape)} does not fit a weight {list(weight.shape)} with "
            "contiguous rows [out, in]"
        )
    config = pick((SWIGLU_CONFIGS if swiglu else CONFIGS)[_kind(x, weight)], tokens)
    if weight.unit and not isinstance(x, QuantizedTokens):
        return words_product(with_unit_stride(x), weight, config, parts, swiglu=swiglu, pdl=pdl)
    if x.dtype == torch.float32:  # twice as wide, and every operand in two halves: for checking
        config = replace(config, stages=2, tile=32)
    part = triton.cdiv(triton.cdiv(columns, parts), config.tile) * config.tile
    parts = triton.cdiv(columns, part)
    given = with_unit_stride(given)
    dtype = x.dtype if parts == 1 else torch.float32
    out = torch.empty((parts, tokens, rows), dtype=dtype, device=given.device)
    block_t = min(power_of_two(tokens, LEAST_TOKENS), BLOCK_T)
    grid = (triton.cdiv(rows, config.block) * triton.cdiv(tokens, block_t), parts)
    values, decode = as_stored(weight.values)
    in_fp8 = quantized and not decode and x.dtype == torch.bfloat16
    launch(
        quantized_linear_kernel,
        grid,
        as_stored(given)[0],
        x.scale if isinstance(x, QuantizedTokens) else weight.scale,
        values,
        weight.scale,
        out,
        tokens,
        given.stride(0),
        rows,
        columns,
        weight.values.stride(0),
        part,
        config=config,
        QUANTIZED=quantized,
        IN_FP8=in_fp8,
        DECODE=decode,
        SWIGLU=swiglu,
        WAIT=has_wgmma(given.device) and not in_fp8,
        PRECISION=precision(x.dtype),
        PREFETCH=256,
        BLOCK_N=config.block,
        BLOCK_K=config.tile,
        BLOCK_T=block_t,
        PDL=pdl,
    )
    return out
