# mypy: disallow-untyped-defs=False
"""SwiGLU in one pass: read gate and up, write their product.

Formula and twin: plamo_ref/kernels/linear/swiglu.py.

Invariant: every element of x is read once; the arithmetic is float32 and rounded once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import Config, launch, pick, silu, with_unit_stride

# Size: F. A block is output elements of one row.
SWIGLU_CONFIGS = (
    Config(up_to=512, block=512, warps=4),
    Config(up_to=1 << 20, block=1024, warps=4),
)


@triton.jit
def swiglu_kernel(x_ptr, out_ptr, x_stride, F, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(x_ptr + row * x_stride + col, mask=col < F, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * x_stride + F + col, mask=col < F, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * F + col, (silu(gate) * up).to(out_ptr.dtype.element_ty), mask=col < F)


def swiglu(x: Tensor) -> Tensor:
    """x [T, 2F], gate first → [T, F]."""
    if not (x.dim() == 2 and x.shape[1] % 2 == 0):
        raise KernelError(f"swiglu: x is {list(x.shape)}, not [T, 2F]")
    x, half = with_unit_stride(x), x.shape[1] // 2
    out = torch.empty((x.shape[0], half), dtype=x.dtype, device=x.device)
    config = pick(SWIGLU_CONFIGS, half)
    grid = (x.shape[0], triton.cdiv(half, config.block))
    launch(swiglu_kernel, grid, x, out, x.stride(0), half, config=config, BLOCK=config.block)
    return out
