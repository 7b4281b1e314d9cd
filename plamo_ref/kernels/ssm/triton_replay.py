# mypy: disallow-untyped-defs=False
"""States that are written every k tokens: one step, and what comes before a prompt.

Formula and twin: plamo_ref/kernels/ssm/replay.py. What a step reads of the ring it need not put
into the state to see the outputs: with w_j = Δ_j, decayed from entry j to now, and S as it lies in
its slot, decayed by all of them together,

    S_t C = exp(Σ Δ_j A) S C + Σ_j w_j (B_j · C) u_j

so a step multiplies with S once, as ever, and only every k-th builds the new one.

Invariant: of a ring no more is read than the entries before the token, and of those with Δ = 0
nothing counts, be it NaN. What is written is built one token after the other, as by triton_state.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import Config, launch, pick, power_of_two, ready, silu, softplus
from plamo_ref.kernels.ssm.narrow import ReplayCache
from plamo_ref.kernels.ssm.triton_narrow import HEAD_CONFIG, HEAD_CONFIGS, stored
from plamo_ref.kernels.ssm.triton_rounding import store_state, widened
from plamo_ref.kernels.ssm.triton_state import check_scan, scan_pointers, scan_strides
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams

# Size: requests. A block is rows of P. A whole head reads its ring once: of 256 requests it beats
# halves and quarters by an eighth to a third (benchmarks/state_replay.py, on an H200).
REPLAY_CONFIGS = (
    Config(up_to=4, block=16, warps=2),
    Config(up_to=1 << 30, block=128, warps=4),
)


@triton.jit
def replayed(
    state, past, count, a, u_ptr, b_ptr, p, n, P: tl.constexpr, N: tl.constexpr, K: tl.constexpr
):
    """The state behind `count` entries of a head's ring, whose Δ are in past [K]: in registers,
    for whoever empties a ring has read it."""
    j = tl.arange(0, K)
    for entry in range(count):
        delta = tl.sum(tl.where(j == entry, past, 0.0))
        u_in, b_in = p < tl.where(delta > 0, P, 0), n < tl.where(delta > 0, N, 0)
        u = tl.load(u_ptr + entry * P + p, mask=u_in, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + entry * N + n, mask=b_in, other=0.0).to(tl.float32)
        state = state * tl.exp(delta * a) + (delta * u)[:, None] * b[None, :]
    return state


@triton.jit(
    do_not_specialize_on_alignment=[
        "slots_ptr",
        "dt_ptr",
        "scales_ptr",
        "lengths_ptr",
        "ring_u_ptr",
        "ring_b_ptr",
        "ring_delta_ptr",
    ]
)
def replay_update_kernel(
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
    ring_u_ptr,
    ring_b_ptr,
    ring_delta_ptr,
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
    K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
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
    n, j = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    a, skip, bias = tl.load(a_ptr + head), tl.load(d_ptr + head), tl.load(bias_ptr + head)
    ready(PDL)
    # The long way first: slot, then state; everything else arrives meanwhile.
    slot = tl.load(slots_ptr + row).to(tl.int64)
    length = tl.load(lengths_ptr + row)
    own = slot * H + head
    state_ptr = cache_ptr + own * P * N + p[:, None] * N + n[None, :]
    inside = (p < P)[:, None] & (n < N)[None, :]
    state = widened(tl.load(state_ptr, mask=inside, other=0.0), FORMAT, DECODE)
    if FORMAT == "fp8" or FORMAT == "int8":
        state *= tl.load(scales_ptr + own)

    entry = (tl.maximum(length - 1, 0) % K).to(tl.int32)  # of a padded request: not the last
    u_ring, b_ring, delta_ring = own * K * P, slot * K * N, own * K
    u_ring, b_ring, delta_ring = (
        ring_u_ptr + u_ring,
        ring_b_ptr + b_ring,
        ring_delta_ptr + delta_ring,
    )
    before = j < entry
    past = tl.load(delta_ring + j, mask=before, other=0.0)
    later = tl.load(delta_ring + j + 1, mask=j + 1 < entry, other=0.0)
    seen = before[:, None] & (n < N)[None, :]
    b_past = tl.load(b_ring + j[:, None] * N + n[None, :], mask=seen, other=0.0).to(tl.float32)
    seen = before[:, None] & (p < P)[None, :]
    u_past = tl.load(u_ring + j[:, None] * P + p[None, :], mask=seen, other=0.0).to(tl.float32)

    delta = softplus(tl.load(dt_ptr + row * dt_stride + head).to(tl.float32) + bias)
    u = tl.load(u_ptr + row * u_stride + head * u_stride_head + p, mask=p < P, other=0.0)
    b = tl.load(b_ptr + row * b_stride + n, mask=n < N, other=0.0)
    c = tl.load(c_ptr + row * c_stride + n, mask=n < N, other=0.0).to(tl.float32)
    # No program of this step reads the entry.
    tl.store(u_ring + entry * P + p, u, mask=p < P)
    tl.store(b_ring + entry * N + n, b, mask=n < tl.where(tl.program_id(0) == 0, N, 0))
    tl.store(delta_ring + entry, delta)
    u, b = u.to(tl.float32), b.to(tl.float32)
    decay = tl.exp(delta * a)

    live = past > 0
    weight = past * tl.exp(tl.cumsum(later * a, axis=0, reverse=True))
    weight = tl.where(live, weight * tl.sum(b_past * c[None, :], axis=1), 0.0)
    u_past = tl.where(live[:, None], u_past, 0.0)
    y = tl.sum(state * c[None, :], axis=1) * tl.exp(tl.sum(past * a))
    y += tl.sum(u_past * weight[:, None], axis=0)
    y = y * decay + (delta * tl.sum(b * c) + skip) * u
    z = tl.load(z_ptr + row * z_stride + head * z_stride_head + p, mask=p < P, other=0.0)
    y = y.to(z.dtype).to(tl.float32) * silu(z.to(tl.float32))
    tl.store(y_ptr + (row * H + head) * P + p, y.to(y_ptr.dtype.element_ty), mask=p < P)

    if entry == K - 1:
        state = replayed(state, past, entry, a, u_ring, b_ring, p, n, P, N, BLOCK_K)
        state = state * decay + (delta * u)[:, None] * b[None, :]
        where = (state_ptr, inside, p[:, None] * N + n[None, :], scales_ptr + own)
        store_state(state, *where, a, length, FORMAT, STOCHASTIC, DECODE)


@triton.jit(
    do_not_specialize=["requests"],
    do_not_specialize_on_alignment=[
        "scales_ptr",
        "slots_ptr",
        "lengths_ptr",
        "starts_ptr",
        "has_past_ptr",
        "photographs_ptr",
        "ring_u_ptr",
        "ring_b_ptr",
        "ring_delta_ptr",
    ],
)
def replay_flush_kernel(
    a_ptr,
    cache_ptr,
    scales_ptr,
    ring_u_ptr,
    ring_b_ptr,
    ring_delta_ptr,
    slots_ptr,
    lengths_ptr,
    starts_ptr,
    has_past_ptr,
    photographs_ptr,
    requests,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FORMAT: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    DECODE: tl.constexpr,
):
    """The ring of one head of one request, or, behind them, of one photograph."""
    head, row = tl.program_id(0), tl.program_id(1)
    length, count = tl.load(lengths_ptr), 0
    if row < requests:
        slot = tl.load(slots_ptr + row)
        length = tl.load(lengths_ptr + row)
        length -= tl.load(starts_ptr + row + 1) - tl.load(starts_ptr + row)
        count = tl.where(tl.load(has_past_ptr + row) != 0, length % K, 0).to(tl.int32)
    else:
        slot = tl.load(photographs_ptr + 3 * (row - requests) + 2)
    own = slot.to(tl.int64) * H + head
    j = tl.arange(0, BLOCK_K)
    past = tl.load(ring_delta_ptr + own * K + j, mask=j < count, other=0.0)
    if tl.max(past) > 0:
        p, n = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_N)
        a = tl.load(a_ptr + head)
        element = p[:, None] * N + n[None, :]
        state_ptr = cache_ptr + own * P * N + element
        inside = (p < P)[:, None] & (n < N)[None, :]
        state = widened(tl.load(state_ptr, mask=inside, other=0.0), FORMAT, DECODE)
        if FORMAT == "fp8" or FORMAT == "int8":
            state *= tl.load(scales_ptr + own)
        ring = (ring_u_ptr + own * K * P, ring_b_ptr + slot.to(tl.int64) * K * N)
        state = replayed(state, past, count, a, *ring, p, n, P, N, BLOCK_K)
        where = (state_ptr, inside, element, scales_ptr + own)
        store_state(state, *where, a, length, FORMAT, STOCHASTIC, DECODE)
    tl.store(ring_delta_ptr + own * K + j, 0.0, mask=j < K)


def replay_state_update(
    inputs: ScanInputs,
    params: ScanParams,
    cache: ReplayCache,
    slots: Tensor,
    lengths: Tensor,
    *,
    pdl: bool = False,
) -> Tensor:
    """One token a request. As the twin → y [R, H, P]."""
    name = "replay_state_update"
    values, scales, ring, sizes = _stored(name, cache, slots, lengths)
    inputs, params = check_scan(name, inputs, params, values, slots)
    requests, heads, size = inputs.u.shape
    if slots.shape != (requests,):
        raise KernelError(f"{name}: {requests} tokens, but slots {slots.shape}")
    config = pick(REPLAY_CONFIGS if cache.scales is None else HEAD_CONFIGS, requests)
    block = min(config.block, power_of_two(size))
    y = torch.empty((requests, heads, size), dtype=inputs.z.dtype, device=values.device)
    launch(
        replay_update_kernel,
        (heads * triton.cdiv(size, block), requests),
        *(*scan_pointers(inputs, params), values, slots, y, scales, lengths, *ring),
        *scan_strides(inputs),
        config=config,
        PDL=pdl,
        **sizes | {"BLOCK_P": block},
    )
    return y


def replay_flush(
    params: ScanParams,
    cache: ReplayCache,
    slots: Tensor,
    query_start_loc: Tensor,
    has_past: Tensor,
    photographs: Tensor,
    lengths: Tensor,
) -> None:
    """Before a prefill. As the twin."""
    name = "replay_flush"
    values, scales, ring, sizes = _stored(name, cache, slots, lengths)
    if params.A.shape != (values.shape[1],):
        raise KernelError(f"{name}: A must be [{values.shape[1]}], one value a head")
    launch(
        replay_flush_kernel,
        (values.shape[1], len(slots) + len(photographs)),
        *(params.A, values, scales, *ring, slots, lengths, query_start_loc, has_past, photographs),
        len(slots),
        config=HEAD_CONFIG,
        **sizes,
    )


def _stored(
    name: str, cache: ReplayCache, slots: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor], dict[str, object]]:
    """States and scales as a kernel takes them, the ring, and the kernels' constants."""
    values, scales, kind, decode = stored(name, cache, slots, lengths)
    ring = (cache.ring_u, cache.ring_b, cache.ring_delta)
    (places, heads, size, state), entries = values.shape, cache.ring_delta.shape[-1]
    shapes = (places, heads, entries, size), (places, entries, state), (places, heads, entries)
    for part, shape in zip(ring, shapes, strict=True):
        if part.shape != shape or not part.is_contiguous():
            raise KernelError(f"{name}: a ring of {list(part.shape)}, expected {list(shape)}")
    sizes: dict[str, object] = {"H": heads, "P": size, "N": state, "K": entries}
    sizes |= {"BLOCK_P": power_of_two(size), "BLOCK_N": power_of_two(state)}
    sizes |= {"BLOCK_K": power_of_two(entries)}
    sizes |= {"FORMAT": kind, "STOCHASTIC": cache.stochastic, "DECODE": decode}
    return values, scales, ring, sizes
