# mypy: disallow-untyped-defs=False
"""The states between the segments of long requests, for scans that do all segments at once.

A segment is some thousand bytes of state ahead of the next one: with l_t the sum of Δ A from the
segment's start to token t, a segment turns the state S before it into

    exp(l_end) S + Σ_s exp(l_end - l_s) Δ_s u_s ⊗ B_s

First all segments work out their sum and l_end at once, then one short pass per request goes over
its segments and leaves, in place of each sum, the state before that segment.

Invariant: a request of one segment costs nothing here; its slot is neither read nor written, and
no other slot is written. The last segment of a request has no sum: nobody comes after it.
Source: Dao and Gu, "Transformers are SSMs" (2024), section 6.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.launch import (
    Config,
    find_request,
    launch,
    power_of_two,
    precision,
)
from plamo_ref.kernels.ssm.twin import ScanInputs


@triton.jit(
    do_not_specialize=["requests", "T"],
    do_not_specialize_on_alignment=["starts_ptr", "delta_ptr", "log_decay_ptr"],
)
def segment_sum_kernel(
    u_ptr,
    b_ptr,
    delta_ptr,
    log_decay_ptr,
    starts_ptr,
    states_ptr,
    logs_ptr,
    requests,
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
    STAGES: tl.constexpr,
):
    """The sum of one segment that is not its request's last, for BLOCK_P rows of one head."""
    BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    block = tl.program_id(1)
    request, offset = find_request(starts_ptr, requests, block, SEGMENT)
    first = tl.load(starts_ptr + request).to(tl.int64)
    count = (tl.load(starts_ptr + request + 1) - first).to(tl.int32)
    if offset + SEGMENT < count:
        head = tl.program_id(0) // BLOCKS
        p = (tl.program_id(0) % BLOCKS) * BLOCK_P + tl.arange(0, BLOCK_P)
        n, i = tl.arange(0, BLOCK_N), tl.arange(0, Q)
        p_in, n_in = p < P, n < N

        # From the end to the start: what a token still has to decay is known when it is met, and
        # the accumulator of the products is never scaled. The segment is full: no token is masked.
        t = first + offset + SEGMENT - Q
        u_base = u_ptr + t * u_stride + head * u_stride_head
        b_base = b_ptr + t * b_stride
        delta_base = delta_ptr + head.to(tl.int64) * T + t
        log_base = log_decay_ptr + head.to(tl.int64) * T + t
        state = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
        rest = 0.0  # the sum of Δ A after this chunk
        for _ in tl.range(0, SEGMENT // Q, num_stages=STAGES):
            u_at = u_base + i[:, None] * u_stride + p[None, :]
            u = tl.load(u_at, mask=p_in[None, :], other=0.0)  # [Q, P]
            b_at = b_base + i[:, None] * b_stride + n[None, :]
            b = tl.load(b_at, mask=n_in[None, :], other=0.0)  # [Q, N]
            total = tl.load(log_base + Q - 1)
            left = tl.exp2(rest + (total - tl.load(log_base + i))) * tl.load(delta_base + i)
            weighted = tl.trans((b.to(tl.float32) * left[:, None]).to(u.dtype))
            state = tl.dot(weighted, u, acc=state, input_precision=PRECISION)
            rest += total
            u_base -= Q * u_stride
            b_base -= Q * b_stride
            delta_base -= Q
            log_base -= Q
        where = block.to(tl.int64) * H + head
        state_at = states_ptr + where * P * N + p[None, :] * N + n[:, None]
        tl.store(state_at, state, mask=p_in[None, :] & n_in[:, None])
        if tl.program_id(0) % BLOCKS == 0:
            tl.store(logs_ptr + where, rest)


@triton.jit(do_not_specialize_on_alignment=["slots_ptr", "starts_ptr", "has_past_ptr"])
def segment_carry_kernel(
    states_ptr,
    logs_ptr,
    cache_ptr,
    slots_ptr,
    starts_ptr,
    has_past_ptr,
    SEGMENT,
    H: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sums become the states before each segment, for BLOCK of the SIZE elements of one head."""
    BLOCKS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    request = tl.program_id(1)
    first = tl.load(starts_ptr + request).to(tl.int32)
    count = tl.load(starts_ptr + request + 1).to(tl.int32) - first
    if count > SEGMENT:
        head = tl.program_id(0) // BLOCKS
        element = (tl.program_id(0) % BLOCKS) * BLOCK + tl.arange(0, BLOCK)
        inside = element < SIZE
        slot = tl.load(slots_ptr + request).to(tl.int64)
        known = element < tl.where(tl.load(has_past_ptr + request) != 0, SIZE, 0)
        state = tl.load(cache_ptr + (slot * H + head) * SIZE + element, mask=known, other=0.0)
        state = state.to(tl.float32)
        where = (first // SEGMENT + request).to(tl.int64) * H + head  # as `find_request` has it
        at = states_ptr + where * SIZE + element
        log_at = logs_ptr + where
        for _ in tl.range(0, (count - 1) // SEGMENT, num_stages=STAGES):
            added = tl.load(at, mask=inside, other=0.0)
            decay = tl.exp2(tl.load(log_at))
            tl.store(at, state, mask=inside)
            state = state * decay + added
            at += H * SIZE
            log_at += H
        tl.store(at, state, mask=inside)


def segment_states(
    inputs: ScanInputs,
    decays: tuple[Tensor, Tensor, Tensor],
    cache: Tensor,
    slots: Tensor,
    query_start_loc: Tensor,
    has_past: Tensor,
    cut: tuple[int, int],
    sums: Config,
    carry: Config,
) -> Tensor:
    """The states before the segments of all requests that have several of them.

    Args:
        inputs: as `check_scan` leaves them; decays: of `chunk_decays`.
        cut: tokens of a chunk and of a segment, which is a multiple of it.
        sums: a block is rows of P; carry: a block is elements of a head's state.

    Returns:
        [T // segment + R, H, P, N] float32, by the block numbers of `find_request`; places of
        requests with one segment are left as they were.
    """
    (tokens, heads, size), state = inputs.u.shape, cache.shape[3]
    (chunk, segment), requests, device = cut, slots.shape[0], cache.device
    blocks = tokens // segment + requests
    states = torch.empty((blocks, heads, size, state), dtype=torch.float32, device=device)
    logs = torch.empty((blocks, heads), dtype=torch.float32, device=device)
    rows = min(sums.block, power_of_two(size, 16))
    launch(
        segment_sum_kernel,
        (heads * triton.cdiv(size, rows), blocks),
        inputs.u,
        inputs.B,
        *decays[:2],
        query_start_loc,
        states,
        logs,
        requests,
        tokens,
        segment,
        *inputs.u.stride()[:2],
        inputs.B.stride(0),
        config=sums,
        H=heads,
        P=size,
        N=state,
        Q=chunk,
        BLOCK_P=rows,
        BLOCK_N=power_of_two(state, 16),
        PRECISION=precision(inputs.u.dtype),
        STAGES=sums.stages,
    )
    launch(
        segment_carry_kernel,
        (heads * triton.cdiv(size * state, carry.block), requests),
        states,
        logs,
        cache,
        slots,
        query_start_loc,
        has_past,
        segment,
        config=carry,
        H=heads,
        SIZE=size * state,
        BLOCK=carry.block,
        STAGES=carry.stages,
    )
    return states
