# mypy: disallow-untyped-defs=False
"""One step of the recurrence for each request: the state is read and written once, in place.

Formula and twin: plamo_ref/kernels/ssm/twin.py.

Invariant: only the given slots are touched; float32 arithmetic whatever dtype the slots have. The
state is nearly all of the traffic (2 · H·P·N elements a request), so its tiles decide the speed.
States with a rounding of their own (narrow.py) are a FORMAT of the same kernel; where a head has
a scale, one program has the whole head.
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
    softplus,
    with_unit_stride,
)
from plamo_ref.kernels.ssm.triton_rounding import store_state, widened
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams

# Size: requests. A block is rows of P: small blocks make enough programs for a few requests. Of 256
# requests the last is 7 % faster than the one before it, on an H200 (benchmarks/state_replay.py).
STATE_CONFIGS = (
    Config(up_to=4, block=16, warps=2),
    Config(up_to=128, block=64, warps=4),
    Config(up_to=1 << 30, block=128, warps=8),
)


@triton.jit(do_not_specialize_on_alignment=["slots_ptr", "dt_ptr", "scales_ptr", "lengths_ptr"])
def state_update_kernel(
    u_ptr,
    z_ptr,
    dt_ptr,
    b_ptr,
    c_ptr,
    a_ptr,
    d_ptr,
    bias_ptr,
    cache_ptr,
    slots_ptr,
    y_ptr,
    scales_ptr,
    lengths_ptr,
    u_stride,
    u_stride_head,
    z_stride,
    z_stride_head,
    dt_stride,
    b_stride,
    c_stride,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
    FORMAT: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    DECODE: tl.constexpr,
):
    """BLOCK_P rows of one head of one request."""
    BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    row = tl.program_id(1).to(tl.int64)
    head = tl.program_id(0) // BLOCKS
    p = (tl.program_id(0) % BLOCKS) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    a, skip, bias = tl.load(a_ptr + head), tl.load(d_ptr + head), tl.load(bias_ptr + head)
    ready(PDL)
    # The long way first: slot, then state; everything else arrives meanwhile.
    slot = tl.load(slots_ptr + row).to(tl.int64)
    state_ptr = cache_ptr + (slot * H + head) * P * N + p[:, None] * N + n[None, :]
    inside = (p < P)[:, None] & (n < N)[None, :]
    state = widened(tl.load(state_ptr, mask=inside, other=0.0), FORMAT, DECODE)
    scale_ptr = scales_ptr + slot * H + head
    if FORMAT == "fp8" or FORMAT == "int8":
        state *= tl.load(scale_ptr)

    dt = tl.load(dt_ptr + row * dt_stride + head).to(tl.float32) + bias
    delta = softplus(dt)
    u = tl.load(u_ptr + row * u_stride + head * u_stride_head + p, mask=p < P, other=0.0)
    u = u.to(tl.float32)
    b = tl.load(b_ptr + row * b_stride + n, mask=n < N, other=0.0).to(tl.float32)
    c = tl.load(c_ptr + row * c_stride + n, mask=n < N, other=0.0).to(tl.float32)
    decay = tl.exp(delta * a)
    state = state * decay + (delta * u)[:, None] * b[None, :]
    position = tl.load(lengths_ptr + row) if STOCHASTIC else 0
    where = (state_ptr, inside, p[:, None] * N + n[None, :], scale_ptr)
    store_state(state, *where, a, position, FORMAT, STOCHASTIC, DECODE)

    y = tl.sum(state * c[None, :], axis=1) + skip * u
    z = tl.load(z_ptr + row * z_stride + head * z_stride_head + p, mask=p < P, other=0.0)
    y = y.to(z.dtype).to(tl.float32) * silu(z.to(tl.float32))
    tl.store(y_ptr + (row * H + head) * P + p, y.to(y_ptr.dtype.element_ty), mask=p < P)


def state_update(
    inputs: ScanInputs,
    params: ScanParams,
    cache: Tensor,
    slots: Tensor,
    *,
    pdl: bool = False,
) -> Tensor:
    """One token a request: cache [S, H, P, N] changed in place at slots [R] → y [R, H, P]."""
    config = pick(STATE_CONFIGS, inputs.u.shape[0])
    return launch_update("state_update", inputs, params, cache, slots, (cache, slots), config, pdl)


def launch_update(
    name: str,
    inputs: ScanInputs,
    params: ScanParams,
    cache: Tensor,
    slots: Tensor,
    narrow: tuple[Tensor, Tensor],
    config: Config,
    pdl: bool,
    how: tuple[str, bool, bool] = ("plain", False, False),
) -> Tensor:
    """The launch for slots of any kind.

    Args:
        narrow: scales and lengths, if the kernel needs them.
        how: FORMAT, STOCHASTIC and DECODE of the kernel.
    """
    inputs, params = check_scan(name, inputs, params, cache, slots)
    (requests, heads, size), state = inputs.u.shape, cache.shape[3]
    if slots.shape != (requests,):
        raise KernelError(f"{name}: {requests} tokens, but slots {slots.shape}")
    y = torch.empty((requests, heads, size), dtype=inputs.z.dtype, device=cache.device)
    block = min(config.block, power_of_two(size))
    launch(
        state_update_kernel,
        (heads * triton.cdiv(size, block), requests),
        *scan_pointers(inputs, params),
        cache,
        slots,
        y,
        *narrow,
        *scan_strides(inputs),
        config=config,
        H=heads,
        P=size,
        N=state,
        BLOCK_P=block,
        BLOCK_N=power_of_two(state),
        PDL=pdl,
        FORMAT=how[0],
        STOCHASTIC=how[1],
        DECODE=how[2],
    )
    return y


def check_scan(
    name: str, inputs: ScanInputs, params: ScanParams, cache: Tensor, slots: Tensor
) -> tuple[ScanInputs, ScanParams]:
    """The same tensors with the layout that the kernels ask for: last dimensions contiguous."""
    tokens, heads, size = inputs.u.shape
    state = cache.shape[-1]
    if not (
        inputs.z.shape == inputs.u.shape
        and inputs.dt.shape == (tokens, heads)
        and inputs.B.shape == inputs.C.shape == (tokens, state)
        and cache.shape[1:] == (heads, size, state)
    ):
        raise KernelError(
            f"{name}: u {list(inputs.u.shape)}, z {list(inputs.z.shape)}, "
            f"dt {list(inputs.dt.shape)}, B {list(inputs.B.shape)}, C {list(inputs.C.shape)} and "
            f"cache {list(cache.shape)} do not fit together"
        )
    wrong = [n for n in ("A", "D", "dt_bias") if getattr(params, n).shape != (heads,)]
    if wrong:
        raise KernelError(f"{name}: {', '.join(wrong)} must be [{heads}], one value a head")
    if not (cache.is_contiguous() and slots.dim() == 1):
        raise KernelError(f"{name}: the cache must be contiguous")
    fields = (inputs.u, inputs.z, inputs.dt, inputs.B, inputs.C)
    return ScanInputs(*map(with_unit_stride, fields)), params


def scan_pointers(inputs: ScanInputs, params: ScanParams) -> tuple[Tensor, ...]:
    return (
        inputs.u,
        inputs.z,
        inputs.dt,
        inputs.B,
        inputs.C,
        params.A,
        params.D,
        params.dt_bias,
    )


def scan_strides(inputs: ScanInputs) -> tuple[int, ...]:
    u, z = inputs.u, inputs.z
    rows = (inputs.dt.stride(0), inputs.B.stride(0), inputs.C.stride(0))
    return (u.stride(0), u.stride(1), z.stride(0), z.stride(1), *rows)
