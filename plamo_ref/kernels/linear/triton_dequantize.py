# mypy: disallow-untyped-defs=False
"""What stands around a quantized product: its activations in e4m3, or its weight made plain.

    quantize_tokens   a program for each token: the largest number, then all of them scaled; norms
                      and SwiGLU do the same themselves
    dequantize        for products in which arithmetic decides, and not the bytes of the weight

Formulas and twins: plamo_ref/kernels/linear/quantized.py, plamo_ref/quantization/quantize.py.

Invariant: what is read is read once and what is written is written once, rounded once.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import Config, launch, pick, power_of_two, ready, with_unit_stride
from plamo_ref.kernels.linear.triton_numbers import (
    as_stored,
    decode_fp8,
    empty_tokens,
    store_quantized,
)
from plamo_ref.kernels.linear.triton_words import words_dequantize_kernel
from plamo_ref.quantization.weight import QuantizedTokens, QuantizedWeight
from plamo_ref.quantization.words import BITS

# Size: numbers of a row. A block is all of it.
TOKEN_CONFIGS = (
    Config(up_to=2048, block=0, warps=4),
    Config(up_to=8192, block=0, warps=8),
    Config(up_to=1 << 20, block=0, warps=16),
)
WEIGHT_CONFIG = Config(up_to=1 << 20, block=8, warps=4, tile=256)  # rows, columns
WORDS_CONFIG = Config(up_to=1 << 20, block=16, warps=4, tile=512)


@triton.jit
def quantize_tokens_kernel(
    x_ptr,
    most_ptr,
    out_ptr,
    scale_ptr,
    x_stride,
    K,
    GIVEN: tl.constexpr,  # `most` is
    DECODE: tl.constexpr,  # e4m3 goes as bytes
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    ready(PDL)
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * x_stride + k, mask=k < K, other=0.0).to(tl.float32)
    most = tl.load(most_ptr + row) if GIVEN else tl.max(tl.abs(x), axis=0)
    store_quantized(x, most, out_ptr + row * K + k, scale_ptr + row, k < K, DECODE)


def quantize_tokens(x: Tensor, most: Tensor | None = None, *, pdl: bool = False) -> QuantizedTokens:
    """x [T, in], max |row| [T] where x is a part of the rows → e4m3 [T, in], scales [T]."""
    if x.dim() != 2:
        raise KernelError(f"quantize_tokens: x is {list(x.shape)}, not [T, in]")
    x, (tokens, columns) = with_unit_stride(x), x.shape
    made = empty_tokens(tokens, columns, x.dtype, x.device)
    out, decode = as_stored(made.values)
    launch(
        quantize_tokens_kernel,
        (tokens,),
        x,
        made.scale if most is None else most,
        out,
        made.scale,
        x.stride(0),
        columns,
        config=pick(TOKEN_CONFIGS, columns),
        GIVEN=most is not None,
        DECODE=decode,
        BLOCK=power_of_two(columns),
        PDL=pdl,
    )
    return made


@triton.jit
def dequantize_kernel(
    w_ptr,
    scale_ptr,
    out_ptr,
    N,
    K,
    w_stride,
    DECODE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    inside = (n < N) & (k < K)
    stored = tl.load(w_ptr + n.to(tl.int64) * w_stride + k, mask=inside, other=0.0)
    scale = tl.load(scale_ptr + n, mask=n < N, other=0.0)
    number = decode_fp8(stored) if DECODE else stored.to(tl.float32)
    out = out_ptr + n.to(tl.int64) * K + k
    tl.store(out, (number * scale).to(out_ptr.dtype.element_ty), mask=inside)


def dequantize(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """The weight [out, in] that this stands for."""
    out = torch.empty(weight.shape, dtype=dtype, device=weight.values.device)
    (rows, columns), config = weight.shape, WEIGHT_CONFIG
    if weight.unit:
        words, config = weight.values.view(torch.int32), WORDS_CONFIG
        tile = math.gcd(columns, config.tile)
        launch(
            words_dequantize_kernel,
            (columns // tile, triton.cdiv(rows, config.block)),
            words,
            weight.scale,
            out,
            rows,
            columns,
            words.stride(0),
            weight.scale.stride(0),
            weight.scale.stride(1) if weight.group else 0,
            config=config,
            BITS=BITS[weight.format],
            UNIT=weight.unit,
            ASM=words.device.type != "cpu" and dtype == torch.bfloat16,
            BLOCK_N=config.block,
            BLOCK_K=tile,
        )
        return out
    values, decode = as_stored(weight.values)
    launch(
        dequantize_kernel,
        (triton.cdiv(rows, config.block), triton.cdiv(columns, config.tile)),
        values,
        weight.scale,
        out,
        rows,
        columns,
        values.stride(0),
        config=config,
        DECODE=decode,
        BLOCK_N=config.block,
        BLOCK_K=config.tile,
    )
    return out
