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
from plamo_ref.kernels.launch import Config, launch, pick, ready, silu, with_unit_stride

# Size: F. A block is output elements of one row.
SWIGLU_CONFIGS = (
    Config(up_to=512, block=512, warps=4),
    Config(up_to=1 << 20, block=1024, warps=4),
)


@triton.jit
def swiglu_kernel(
    x_ptr,
    out_ptr,
    x_stride,
    part_stride,
    F,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    ready(PDL)
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kind = out_ptr.dtype.element_ty
    x = x_ptr + row * x_stride + col
    gate = tl.zeros((BLOCK,), dtype=tl.float32)
    up = tl.zeros((BLOCK,), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        gate += tl.load(x + part * part_stride, mask=col < F, other=0.0).to(tl.float32)
        up += tl.load(x + part * part_stride + F, mask=col < F, other=0.0).to(tl.float32)
    # The product is rounded before SwiGLU, as where it comes whole.
    gate, up = gate.to(kind).to(tl.float32), up.to(kind).to(tl.float32)
    tl.store(out_ptr + row * F + col, (silu(gate) * up).to(kind), mask=col < F)


def swiglu(x: Tensor) -> Tensor:
    """x [T, 2F], gate first → [T, F]."""
    if not (x.dim() == 2 and x.shape[1] % 2 == 0):
        raise KernelError(f"swiglu: x is {list(x.shape)}, not [T, 2F]")
    return swiglu_parts(with_unit_stride(x)[None], x.dtype)


def swiglu_parts(x: Tensor, dtype: torch.dtype, *, pdl: bool = False) -> Tensor:
    """Partial sums x [parts, T, 2F], gate first → [T, F] of `dtype`."""
    parts, tokens, half = x.shape[0], x.shape[1], x.shape[2] // 2
    out = torch.empty((tokens, half), dtype=dtype, device=x.device)
    config = pick(SWIGLU_CONFIGS, half)
    launch(
        swiglu_kernel,
        (tokens, triton.cdiv(half, config.block)),
        x,
        out,
        x.stride(1),
        x.stride(0),
        half,
        config=config,
        PARTS=parts,
        BLOCK=config.block,
        PDL=pdl,
    )
    return out
