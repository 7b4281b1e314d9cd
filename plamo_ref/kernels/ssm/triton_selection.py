# mypy: disallow-untyped-defs=False
"""B, C and dt of a Mamba layer in one pass over their projection.

Formula and twin: plamo_ref/kernels/ssm/selection.py.

A few tokens come in many parts: the projection is narrow, so its columns were shared out among
programs. What then takes the time is to add the parts, and each program has one token, whose parts
it asks for all at once. Many tokens come whole, and their product is one of matrices.

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
    Config(up_to=32, block=1, warps=4, tile=16),
    Config(up_to=128, block=1, warps=4, tile=32),
    Config(up_to=256, block=16, warps=4, tile=16),
    Config(up_to=1 << 30, block=32, warps=4, tile=64),
)


@triton.jit
def add_parts(x_ptr, inside, PARTS: tl.constexpr, BLOCK_P: tl.constexpr, stride_part, dtype):
    """The sum of PARTS rows that lie stride_part apart, x_ptr [n] is the first, rounded to dtype.

    One load of a matrix: no part waits for the one before it."""
    part = tl.arange(0, BLOCK_P)[:, None]
    inside = inside[None, :] & (part < PARTS)
    x = tl.load(x_ptr[None, :] + part * stride_part, mask=inside, other=0.0)
    return tl.sum(x.to(tl.float32), axis=0).to(dtype).to(tl.float32)


@triton.jit
def selection_row_kernel(
    x_ptr,
    b_gain_ptr,
    c_gain_ptr,
    dt_gain_ptr,
    weight_ptr,
    b_ptr,
    c_ptr,
    dt_ptr,
    x_stride_part,
    x_stride,
    eps,
    PARTS: tl.constexpr,
    N: tl.constexpr,
    R: tl.constexpr,
    H: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    HEADS: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token: B (program 0), C (program 1), or dt of HEADS heads."""
    token = tl.program_id(0).to(tl.int64)
    job = tl.program_id(1)
    dtype = weight_ptr.dtype.element_ty
    line = x_ptr + token * x_stride
    if job < 2:
        n = tl.arange(0, BLOCK_N)
        small_gain = tl.load((b_gain_ptr if job == 0 else c_gain_ptr) + n, mask=n < N, other=0.0)
        ready(PDL)
        small = add_parts(line + job * N + n, n < N, PARTS, BLOCK_P, x_stride_part, dtype)
        small = normalise(small, N, eps).to(dtype).to(tl.float32) * small_gain.to(tl.float32)
        tl.store((b_ptr if job == 0 else c_ptr) + token * N + n, small.to(dtype), mask=n < N)
    else:
        r, h = tl.arange(0, BLOCK_R), (job - 2) * HEADS + tl.arange(0, HEADS)
        gain = tl.load(dt_gain_ptr + r, mask=r < R, other=0.0).to(tl.float32)
        inside = (h < H)[:, None] & (r < R)[None, :]
        weight = tl.load(weight_ptr + h[:, None] * R + r[None, :], mask=inside, other=0.0)
        ready(PDL)
        x = add_parts(line + 2 * N + r, r < R, PARTS, BLOCK_P, x_stride_part, dtype)
        x = (normalise(x, R, eps).to(dtype).to(tl.float32) * gain).to(dtype).to(tl.float32)
        # One row would leave 15 of a matrix unit's 16 idle.
        dt = tl.sum(weight.to(tl.float32) * x[None, :], axis=1)
        tl.store(dt_ptr + token * H + h, dt.to(dtype), mask=h < H)


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
    config = pick(SELECTION_CONFIGS, tokens)
    if dtype == torch.float32 and config.block > 1:
        # Operands of two tf32 values each: the smaller tile.
        config = next(row for row in SELECTION_CONFIGS if row.block > 1)
    tensors = (
        parts,
        params.B_gain.contiguous(),
        params.C_gain.contiguous(),
        params.dt_gain.contiguous(),
        params.dt_weight.contiguous(),
        B,
        C,
        dt,
    )
    strides = parts.stride(0), parts.stride(1), params.eps
    sizes = {"PARTS": parts.shape[0], "N": state, "R": rank, "H": heads, "HEADS": config.tile}
    jobs = 2 + triton.cdiv(heads, config.tile)
    if config.block == 1:
        launch(
            selection_row_kernel,
            (tokens, jobs),
            *tensors,
            *strides,
            config=config,
            **sizes,
            BLOCK_P=power_of_two(parts.shape[0]),
            BLOCK_N=power_of_two(state),
            BLOCK_R=power_of_two(rank),
            PDL=pdl,
        )
    else:
        launch(
            selection_kernel,
            (triton.cdiv(tokens, config.block), jobs),
            *tensors,
            tokens,
            *strides,
            config=config,
            **sizes,
            BLOCK_N=power_of_two(state),
            BLOCK_R=power_of_two(rank, 16),
            TOKENS=config.block,
            PRECISION=precision(dtype),
            PDL=pdl,
        )
    return B, C, dt
