# mypy: disallow-untyped-defs=False
"""SwiGLU in one pass: read gate and up, which may come in partial sums, write their product.

Formula and twin: plamo_ref/kernels/linear/swiglu.py.

Invariant: every element of x is read once; the arithmetic is float32 and rounded once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import (
    Config,
    launch,
    pick,
    power_of_two,
    ready,
    silu,
    with_unit_stride,
)
from plamo_ref.kernels.linear.triton_numbers import as_stored, empty_tokens, store_quantized
from plamo_ref.quantization.weight import QuantizedTokens

KINDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}

# Size: F. A block is output elements of one row.
SWIGLU_CONFIGS = (
    Config(up_to=512, block=512, warps=4),
    Config(up_to=1 << 20, block=1024, warps=4),
)


# The same where a program has all of a row, in e4m3.
ROW_CONFIGS = (
    Config(up_to=2048, block=0, warps=4),
    Config(up_to=8192, block=0, warps=8),
    Config(up_to=1 << 20, block=0, warps=16),
)


@triton.jit
def swiglu_kernel(
    x_ptr,
    out_ptr,
    scale_ptr,
    x_stride,
    part_stride,
    F,
    PARTS: tl.constexpr,
    KIND: tl.constexpr,  # of the activations
    QUANTIZE: tl.constexpr,  # they go in e4m3, with a scale for each token; BLOCK is a row
    DECODE: tl.constexpr,  # … as bytes
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    ready(PDL)
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = x_ptr + row * x_stride + col
    gate = tl.zeros((BLOCK,), dtype=tl.float32)
    up = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        gate += tl.load(x + part * part_stride, mask=col < F, other=0.0).to(tl.float32)
        up += tl.load(x + part * part_stride + F, mask=col < F, other=0.0).to(tl.float32)
    # The product is rounded before SwiGLU, as where it comes whole.
    gate, up = gate.to(KIND).to(tl.float32), up.to(KIND).to(tl.float32)
    y, out = (silu(gate) * up).to(KIND), out_ptr + row * F + col
    if QUANTIZE:
        y = y.to(tl.float32)
        most = tl.max(tl.abs(y), axis=0)
        store_quantized(y, most, out, scale_ptr + row, col < F, DECODE)
    else:
        tl.store(out, y, mask=col < F)


def swiglu(x: Tensor) -> Tensor:
    """x [T, 2F], gate first → [T, F]."""
    if not (x.dim() == 2 and x.shape[1] % 2 == 0):
        raise KernelError(f"swiglu: x is {list(x.shape)}, not [T, 2F]")
    return swiglu_parts(with_unit_stride(x)[None], x.dtype)


def swiglu_parts(x: Tensor, dtype: torch.dtype, *, pdl: bool = False) -> Tensor:
    """Partial sums x [parts, T, 2F], gate first → [T, F] of `dtype`."""
    tokens, half = x.shape[1], x.shape[2] // 2
    out = torch.empty((tokens, half), dtype=dtype, device=x.device)
    config = pick(SWIGLU_CONFIGS, half)
    _launch(x, out, out, dtype, config, config.block, pdl=pdl)
    return out


def swiglu_quantized(x: Tensor, dtype: torch.dtype, *, pdl: bool = False) -> QuantizedTokens:
    """The same as `quantize_tokens` would leave it."""
    tokens, half = x.shape[1], x.shape[2] // 2
    made = empty_tokens(tokens, half, dtype, x.device)
    config = pick(ROW_CONFIGS, half)
    _launch(x, made.values, made.scale, dtype, config, power_of_two(half), quantize=True, pdl=pdl)
    return made


def _launch(
    x: Tensor,
    out: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
    config: Config,
    block: int,
    *,
    quantize: bool = False,
    pdl: bool,
) -> None:
    (parts, tokens, both), (out, decode) = x.shape, as_stored(out)
    launch(
        swiglu_kernel,
        (tokens, triton.cdiv(both // 2, block)),
        x,
        out,
        scale,
        x.stride(1),
        x.stride(0),
        both // 2,
        config=config,
        PARTS=parts,
        KIND=KINDS[dtype],
        QUANTIZE=quantize,
        DECODE=decode,
        BLOCK=block,
        PDL=pdl,
    )
