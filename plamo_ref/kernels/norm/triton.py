# mypy: disallow-untyped-defs=False
"""RMS norm and the seam between two sub-layers, each in one pass over memory.

Formulas and twins: plamo_ref/kernels/norm/twin.py.

Invariant: as in the twins, statistics in float32 and a rounding to the dtype of x before the gain.
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
    with_unit_stride,
)
from plamo_ref.kernels.linear.triton_numbers import as_stored, empty_tokens, store_quantized
from plamo_ref.quantization.weight import Activations

# Size: elements of a row. A block is rows: short rows (B, C and Δ of Mamba) share a program.
NORM_CONFIGS = (
    Config(up_to=256, block=16, warps=4),
    Config(up_to=2048, block=1, warps=4),
    Config(up_to=1 << 20, block=1, warps=16),
)


@triton.jit
def normalise(x, D: tl.constexpr, eps):
    """x / sqrt(mean(x²) + eps) over the last axis; what lies beyond D must be 0."""
    return x * tl.rsqrt(tl.sum(x * x, axis=-1, keep_dims=True) / D + eps)


@triton.jit
def load_parts(x_ptr, mask, PARTS: tl.constexpr, stride_part):
    """The sum of PARTS tensors that lie stride_part apart, in float32; all asked for at once."""
    x = tl.load(x_ptr, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, PARTS):
        x += tl.load(x_ptr + part * stride_part, mask=mask, other=0.0).to(tl.float32)
    return x


@triton.jit(do_not_specialize=["rows"])
def rms_norm_kernel(
    x_ptr,
    gain_ptr,
    out_ptr,
    rows,
    x_stride,
    eps,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    col = tl.arange(0, BLOCK_D)[None, :]
    inside = (row < rows) & (col < D)
    gain = tl.load(gain_ptr + col, mask=col < D, other=0.0).to(tl.float32)
    ready(PDL)
    x = tl.load(x_ptr + row * x_stride + col, mask=inside, other=0.0)
    normed = normalise(x.to(tl.float32), D, eps).to(x.dtype).to(tl.float32) * gain
    tl.store(out_ptr + row * D + col, normed.to(out_ptr.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, gain: Tensor, eps: float, *, pdl: bool = False) -> Tensor:
    """x [..., D], gain [D] → [..., D]. As the twin, for one gain of all rows."""
    size = x.shape[-1]
    if gain.shape != (size,):
        raise KernelError(f"rms_norm: gain is {list(gain.shape)}, but x ends in [{size}]")
    flat = with_unit_stride(x).reshape(-1, size)
    out = torch.empty(x.shape, dtype=torch.promote_types(x.dtype, gain.dtype), device=x.device)
    config = pick(NORM_CONFIGS, size)
    launch(
        rms_norm_kernel,
        (triton.cdiv(flat.shape[0], config.block),),
        flat,
        gain.contiguous(),
        out,
        flat.shape[0],
        flat.stride(0),
        eps,
        config=config,
        D=size,
        BLOCK_D=power_of_two(size),
        ROWS=config.block,
        PDL=pdl,
    )
    return out


@triton.jit
def add_norm_kernel(
    residual_ptr,
    x_ptr,
    post_ptr,
    pre_ptr,
    sum_ptr,
    out_ptr,
    scale_ptr,
    residual_stride,
    x_stride_part,
    x_stride,
    eps,
    PARTS: tl.constexpr,
    QUANTIZE: tl.constexpr,  # the norm goes in e4m3, with a scale for each token
    DECODE: tl.constexpr,  # … as bytes
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK_D)
    inside = col < D
    # Asked for before the inputs are there: the gains depend on nobody.
    post = tl.load(post_ptr + col, mask=inside, other=0.0).to(tl.float32)
    pre = tl.load(pre_ptr + col, mask=inside, other=0.0).to(tl.float32)
    ready(PDL)
    residual = tl.load(residual_ptr + row * residual_stride + col, mask=inside, other=0.0)
    dtype = residual.dtype
    x = load_parts(x_ptr + row * x_stride + col, inside, PARTS, x_stride_part).to(dtype)
    normed = normalise(x.to(tl.float32), D, eps).to(dtype).to(tl.float32) * post
    # The next norm sees the stream as the next addition will: rounded.
    total = (residual.to(tl.float32) + normed.to(dtype).to(tl.float32)).to(dtype)
    tl.store(sum_ptr + row * D + col, total, mask=inside)
    normed = normalise(total.to(tl.float32), D, eps).to(dtype).to(tl.float32) * pre
    normed = normed.to(dtype)
    if QUANTIZE:
        normed = normed.to(tl.float32)
        most = tl.max(tl.abs(normed), axis=0)
        store_quantized(normed, most, out_ptr + row * D + col, scale_ptr + row, inside, DECODE)
    else:
        tl.store(out_ptr + row * D + col, normed, mask=inside)


def add_norm(
    residual: Tensor,
    x: Tensor,
    post_gain: Tensor,
    pre_gain: Tensor,
    eps: float,
    quantize: bool = False,
    *,
    pdl: bool = False,
) -> tuple[Tensor, Activations]:
    """residual [T, D], x [T, D] or parts of it [parts, T, D] → new residual, its norm: [T, D].

    Args:
        quantize: the norm as `quantize_tokens` would leave it.
    """
    (rows, size), parts = residual.shape, x if x.dim() == 3 else x[None]
    if not (parts.shape[1:] == residual.shape and post_gain.shape == pre_gain.shape == (size,)):
        raise KernelError(
            f"add_norm: residual {list(residual.shape)}, x {list(x.shape)}, gains "
            f"{list(post_gain.shape)} and {list(pre_gain.shape)} do not fit together"
        )
    dtypes = {residual.dtype, post_gain.dtype, pre_gain.dtype}
    if not (len(dtypes) == 1 and parts.dtype in (residual.dtype, torch.float32)):
        raise KernelError(
            "add_norm: one dtype for all (parts may be float32), not "
            f"{sorted(map(str, dtypes))} and x in {x.dtype}"
        )
    residual, parts = with_unit_stride(residual), with_unit_stride(parts)
    total = torch.empty((rows, size), dtype=residual.dtype, device=x.device)
    made: Activations
    if quantize:
        made = empty_tokens(rows, size, residual.dtype, x.device)
        (out, decode), scale = as_stored(made.values), made.scale
    else:
        made = out = scale = torch.empty_like(total)
        decode = False
    launch(
        add_norm_kernel,
        (rows,),
        residual,
        parts,
        post_gain.contiguous(),
        pre_gain.contiguous(),
        total,
        out,
        scale,
        residual.stride(0),
        parts.stride(0),
        parts.stride(1),
        eps,
        config=pick(NORM_CONFIGS, size),
        D=size,
        BLOCK_D=power_of_two(size),
        PARTS=parts.shape[0],
        QUANTIZE=quantize,
        DECODE=decode,
        PDL=pdl,
    )
    return total, made
