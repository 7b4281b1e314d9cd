# mypy: disallow-untyped-defs=False
"""B, C and dt of a Mamba layer in one pass over their projection.

Formula and twin: plamo_ref/kernels/ssm/selection.py.

Invariant: roundings as in the twin: the sum of the parts, each norm before its gain, the result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import Config, launch, pick, power_of_two, precision, ready
from plamo_ref.kernels.norm.triton import load_parts, normalise
from plamo_ref.kernels.ssm.selection import SelectionParams

# Size: tokens. A block is tokens (products of matrices need 16), a tile heads.
SELECTION_CONFIGS = (
    Config(up_to=256, block=16, warps=4, tile=16),
    Config(up_to=1 << 30, block=32, warps=4, tile=64),
)


@triton.jit(do_not_specialize=["T"])
def selection_kernel(
    x_ptr,
    b_gain_ptr,
    c_gain_ptr,
    dt_gain_ptr,
    weight_ptr,
    b_ptr,
    c_ptr,
    dt_ptr,
    T,
    x_stride_part,
    x_stride,
    eps,
    PARTS: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """TOKENS tokens: B (program 0), C (program 1), or dt of HEADS heads."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    live = (token < T)[:, None]
    job = tl.program_id(1)
    dtype = weight_ptr.dtype.element_ty
    line = x_ptr + token.to(tl.int64)[:, None] * x_stride
    if job < 2:
        n = tl.arange(0, BLOCK_N)[None, :]
        used = live & (n < N)
        small_gain = tl.load((b_gain_ptr if job == 0 else c_gain_ptr) + n, mask=n < N, other=0.0)
        ready(PDL)
        small = load_parts(line + job * N + n, used, PARTS, x_stride_part).to(dtype)
        small = normalise(small.to(tl.float32), N, eps).to(dtype).to(tl.float32)
        small_out = (b_ptr if job == 0 else c_ptr) + token.to(tl.int64)[:, None] * N + n
        tl.store(small_out, (small * small_gain.to(tl.float32)).to(dtype), mask=used)
    else:
        r = tl.arange(0, BLOCK_R)
        h = (job - 2) * HEADS + tl.arange(0, HEADS)[None, :]
        gain = tl.load(dt_gain_ptr + r, mask=r < R, other=0.0).to(tl.float32)[None, :]
        inside = (r < R)[:, None] & (h < H)
        weight = tl.load(weight_ptr + h * R + r[:, None], mask=inside, other=0.0)  # [R, heads]
        ready(PDL)
        inside = live & (r < R)[None, :]
        x = load_parts(line + 2 * N + r[None, :], inside, PARTS, x_stride_part).to(dtype)
        x = normalise(x.to(tl.float32), R, eps).to(dtype).to(tl.float32) * gain
        dt = tl.dot(x.to(dtype), weight, input_precision=PRECISION)
        out = dt_ptr + token.to(tl.int64)[:, None] * H + h
        tl.store(out, dt.to(dtype), mask=live & (h < H))


def selection(
    bcdt: Tensor, params: SelectionParams, *, pdl: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """bcdt [T, 2N + R], or parts of it [parts, T, 2N + R] → B, C [T, N] and dt [T, H]."""
    parts = bcdt if bcdt.dim() == 3 else bcdt[None]
    (heads, rank), state = params.dt_weight.shape, params.B_gain.shape[0]
    tokens = parts.shape[1]
    if not (
        parts.shape[2] == 2 * state + rank
        and params.C_gain.shape == (state,)
        and params.dt_gain.shape == (rank,)
        and parts.stride(2) == 1
    ):
        raise KernelError(
            f"selection: bcdt {list(bcdt.shape)} does not hold B and C of {state} and dt of {rank}"
        )
    dtype, device = params.dt_weight.dtype, bcdt.device
    B, C = (torch.empty((tokens, state), dtype=dtype, device=device) for _ in range(2))
    dt = torch.empty((tokens, heads), dtype=dtype, device=device)
    # float32 operands are two tf32 values each: the smaller tile.
    config = pick(SELECTION_CONFIGS, 0 if dtype == torch.float32 else tokens)
    launch(
        selection_kernel,
        (triton.cdiv(tokens, config.block), 2 + triton.cdiv(heads, config.tile)),
        parts,
        params.B_gain.contiguous(),
        params.C_gain.contiguous(),
        params.dt_gain.contiguous(),
        params.dt_weight.contiguous(),
        B,
        C,
        dt,
        tokens,
        parts.stride(0),
        parts.stride(1),
        params.eps,
        config=config,
        N=state,
        R=rank,
        H=heads,
        BLOCK_N=power_of_two(state),
        BLOCK_R=power_of_two(rank, 16),
        TOKENS=config.block,
        HEADS=config.tile,
        PRECISION=precision(dtype),
        PARTS=parts.shape[0],
        PDL=pdl,
    )
    return B, C, dt
