# mypy: disallow-untyped-defs=False
"""Photographs of a scan: the state in the middle of a request's new tokens, in a slot of its own.

A photograph is one more segment that ends where it is wanted: from the state before the segment in
which it lies (triton_segments.py has it; with one segment it is the request's slot) over the rest
of the tokens to its moment, without their outputs. At a border there is no rest: a copy.

    S_end = exp(l_end) S + Σ_s exp(l_end - l_s) Δ_s u_s ⊗ B_s

So the kernels of the scan itself know nothing of photographs, and a step without one pays nothing.

Invariant: runs before the scan, which overwrites the slots that are read here; writes only the
photographs' own slots. One of 0 tokens is padding: it copies what was there before.
"""

import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.launch import Config, launch, power_of_two, precision
from plamo_ref.kernels.ssm.twin import ScanInputs


@triton.jit(
    do_not_specialize=["T"],
    do_not_specialize_on_alignment=[
        "photographs_ptr",
        "slots_ptr",
        "starts_ptr",
        "has_past_ptr",
        "delta_ptr",
        "log_decay_ptr",
    ],
)
def scan_photograph_kernel(
    u_ptr,
    b_ptr,
    delta_ptr,
    log_decay_ptr,
    cache_ptr,
    slots_ptr,
    starts_ptr,
    has_past_ptr,
    states_ptr,
    photographs_ptr,
    T,
    SEGMENT,
    u_stride,
    u_stride_head,
    b_stride,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One photograph, for BLOCK_P rows of one head."""
    BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    photograph_at = photographs_ptr + 3 * tl.program_id(1)
    request = tl.load(photograph_at)
    end = tl.load(photograph_at + 1).to(tl.int32)
    first = tl.load(starts_ptr + request).to(tl.int64)
    count = (tl.load(starts_ptr + request + 1) - first).to(tl.int32)
    segment = tl.minimum(end, tl.maximum(count - 1, 0)) // SEGMENT
    head = tl.program_id(0) // BLOCKS
    p = (tl.program_id(0) % BLOCKS) * BLOCK_P + tl.arange(0, BLOCK_P)
    n, i = tl.arange(0, BLOCK_N), tl.arange(0, Q)
    p_in, n_in = p < P, n < N

    inside = p_in[None, :] & n_in[:, None]
    place = p[None, :] * N + n[:, None]  # transposed, as in the scan
    if count > SEGMENT:
        where = first // SEGMENT + request + segment  # as `find_request` has it
        state_at = states_ptr + (where * H + head) * P * N + place
        state = tl.load(state_at, mask=inside, other=0.0)
    else:
        known = p < tl.where(tl.load(has_past_ptr + request) != 0, P, 0)
        slot = tl.load(slots_ptr + request).to(tl.int64)
        slot_at = cache_ptr + (slot * H + head) * P * N + place
        state = tl.load(slot_at, mask=inside & known[None, :], other=0.0).to(tl.float32)

    t = first + segment * SEGMENT
    tokens = end - segment * SEGMENT
    u_base = u_ptr + t * u_stride + head * u_stride_head + p[None, :]
    b_base = b_ptr + t * b_stride + n[None, :]
    of_head = head.to(tl.int64) * T + t
    delta_base, log_base = delta_ptr + of_head, log_decay_ptr + of_head
    at = 0
    for _ in range(0, tokens, Q):
        token = at + i
        live, row = token < tokens, token[:, None]
        u = tl.load(u_base + row * u_stride, mask=live[:, None] & p_in[None, :], other=0.0)
        b = tl.load(b_base + row * b_stride, mask=live[:, None] & n_in[None, :], other=0.0)
        delta = tl.load(delta_base + token, mask=live, other=0.0)
        log_decay = tl.load(log_base + token, mask=live, other=0.0)
        at += tl.minimum(tokens - at, Q)
        total = tl.load(log_base + (at - 1))
        left = tl.exp2(tl.where(live, total - log_decay, 0.0)) * delta
        weighted = tl.trans((b.to(tl.float32) * left[:, None]).to(u.dtype))
        state *= tl.exp2(total)
        state = tl.dot(weighted, u, acc=state, input_precision=PRECISION)
    own = tl.load(photograph_at + 2).to(tl.int64)
    own_at = cache_ptr + (own * H + head) * P * N + place
    tl.store(own_at, state.to(cache_ptr.dtype.element_ty), mask=inside)


def scan_photographs(
    inputs: ScanInputs,
    decays: tuple[Tensor, Tensor, Tensor],
    cache: Tensor,
    slots: Tensor,
    query_start_loc: Tensor,
    has_past: Tensor,
    states: Tensor,
    photographs: Tensor,
    cut: tuple[int, int],
    config: Config,
) -> None:
    """Write the states that `photographs` [F, 3] ask for into their slots of the cache.

    Args:
        inputs: as `check_scan` leaves them; decays: of `chunk_decays`; states: of `segment_states`.
        cut: tokens of a chunk and of a segment.
        config: a block is rows of P.
    """
    (tokens, heads, size), state = inputs.u.shape, cache.shape[3]
    (chunk, segment), rows = cut, min(config.block, power_of_two(size, 16))
    launch(
        scan_photograph_kernel,
        (heads * triton.cdiv(size, rows), photographs.shape[0]),
        inputs.u,
        inputs.B,
        *decays[:2],
        cache,
        slots,
        query_start_loc,
        has_past,
        states,
        photographs,
        tokens,
        segment,
        *inputs.u.stride()[:2],
        inputs.B.stride(0),
        config=config,
        H=heads,
        P=size,
        N=state,
        Q=chunk,
        BLOCK_P=rows,
        BLOCK_N=power_of_two(state, 16),
        PRECISION=precision(inputs.u.dtype),
    )
