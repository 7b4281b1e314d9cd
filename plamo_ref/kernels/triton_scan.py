# mypy: disallow-untyped-defs=False
"""The recurrence over many tokens, chunk by chunk, each chunk as products of matrices.

Formula and twin: plamo_ref/kernels/ssm.py. Within a chunk, with l_t the sum of Δ A up to t:

    y_t = Σ_{s ≤ t} exp(l_t - l_s) (C_t·B_s) Δ_s u_s + exp(l_t) C_t S + D u_t
    S  ← exp(l_end) S + Σ_s exp(l_end - l_s) Δ_s u_s ⊗ B_s         S: the state before the chunk

One program walks through the chunks of a segment of one request, for one head, with the state in
its registers. Short requests are one segment, from the slot into the slot. A long one alone would
leave most of the GPU idle: it is cut, and triton_segments.py gives each segment the state before
it, for the price of reading u a second time.

Invariant: the state of a request without a past is not read; only the given slots are written.
Source: Dao and Gu, "Transformers are SSMs" (2024), section 6.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.errors import require
from plamo_ref.kernels.ssm import ScanInputs, ScanParams
from plamo_ref.kernels.triton_launch import (
    Config,
    find_request,
    launch,
    pick,
    power_of_two,
    precision,
    silu,
)
from plamo_ref.kernels.triton_segments import decays, segment_states
from plamo_ref.kernels.triton_state import check_scan, scan_pointers, scan_strides


@dataclass(frozen=True)
class Plan:
    """How a scan is cut into programs; benchmarks/scan_sweep.py measures others."""

    walk: Config  # of scan_kernel: a block is rows of P, a tile a chunk
    sums: Config  # of segment_sum_kernel, likewise
    carry: Config  # of segment_carry_kernel: a block is elements of a head's state
    segment: int  # tokens; requests up to it are one program a block of a head


# Size: tokens of a request, on average. Chunks of 64 fill Hopper's matrix unit; parts of 16 tokens
# and fewer are all state, which many small programs move faster.
WALK_CONFIGS = (
    Config(up_to=16, block=32, warps=4, tile=16),
    Config(up_to=1 << 30, block=128, warps=4, stages=2, tile=64),
)
# float32: each operand of tf32x3 in two halves, so smaller tiles.
WIDE_WALK_CONFIGS = (Config(up_to=1 << 30, block=16, warps=4, tile=32),)
SUMS_CONFIG = Config(up_to=1 << 30, block=128, warps=4, stages=3, tile=64)
WIDE_SUMS_CONFIG = Config(up_to=1 << 30, block=16, warps=4, tile=32)
CARRY_CONFIG = Config(up_to=1 << 30, block=1024, warps=4, stages=4)
PROGRAMS = 512  # that one step should have: two waves of two on each multiprocessor
SEGMENTS = (256, 1024)  # the shortest (below, three launches cost more than they save), the longest


@triton.jit(
    do_not_specialize=["requests"],
    do_not_specialize_on_alignment=["slots_ptr", "starts_ptr", "has_past_ptr", "dt_ptr"],
)
def scan_kernel(
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
    starts_ptr,
    has_past_ptr,
    states_ptr,
    y_ptr,
    requests,
    SEGMENT,
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
    Q: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The chunks of one segment, for BLOCK_P rows of one head."""
    BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    block = tl.program_id(1)
    request, offset = find_request(starts_ptr, requests, block, SEGMENT)
    first = tl.load(starts_ptr + request).to(tl.int64)
    count = (tl.load(starts_ptr + request + 1) - first).to(tl.int32)
    if offset < count or offset == 0:
        head = tl.program_id(0) // BLOCKS
        p = (tl.program_id(0) % BLOCKS) * BLOCK_P + tl.arange(0, BLOCK_P)
        n, i = tl.arange(0, BLOCK_N), tl.arange(0, Q)
        p_in, n_in = p < P, n < N
        a, skip, bias = tl.load(a_ptr + head), tl.load(d_ptr + head), tl.load(bias_ptr + head)

        # Transposed, [N, P]: then no product below has to transpose it.
        inside = p_in[None, :] & n_in[:, None]
        place = p[None, :] * N + n[:, None]
        slot = tl.load(slots_ptr + request).to(tl.int64)
        slot_at = cache_ptr + (slot * H + head) * P * N + place
        if count > SEGMENT:
            state_at = states_ptr + (block.to(tl.int64) * H + head) * P * N + place
            state = tl.load(state_at, mask=inside, other=0.0)
        else:
            known = p < tl.where(tl.load(has_past_ptr + request) != 0, P, 0)
            state = tl.load(slot_at, mask=inside & known[None, :], other=0.0).to(tl.float32)

        t = first + offset
        tokens = tl.minimum(count - offset, SEGMENT)
        # Bases move, offsets stay: these are small, one register each.
        u_base = u_ptr + t * u_stride + head * u_stride_head
        z_base = z_ptr + t * z_stride + head * z_stride_head
        y_base = y_ptr + (t * H + head) * P
        b_base, c_base, dt_base = b_ptr + t * b_stride, c_ptr + t * c_stride, dt_ptr + t * dt_stride
        dt_base += head
        dt_ahead = tl.load(dt_base + i * dt_stride, mask=i < tokens, other=0.0)
        for start in tl.range(0, tokens, Q, num_stages=STAGES):
            live = start + i < tokens
            live_p = live[:, None] & p_in[None, :]
            c_at = c_base + i[:, None] * c_stride + n[None, :]
            c = tl.load(c_at, mask=live[:, None] & n_in[None, :], other=0.0)  # [Q, N]
            b_at = b_base + i[:, None] * b_stride + n[None, :]
            b = tl.load(b_at, mask=live[:, None] & n_in[None, :], other=0.0)  # [Q, N]
            u = tl.load(u_base + i[:, None] * u_stride + p[None, :], mask=live_p, other=0.0)
            z = tl.load(z_base + i[:, None] * z_stride + p[None, :], mask=live_p, other=0.0)
            dt = dt_ahead
            dt_base += Q * dt_stride
            dt_ahead = tl.load(dt_base + i * dt_stride, mask=start + Q + i < tokens, other=0.0)
            is_last = i == tl.minimum(tokens - start, Q) - 1
            delta, log_decay, total = decays(dt, bias, a, live, is_last)

            between = log_decay[:, None] - log_decay[None, :]  # [Q, Q]
            # Masked before exp: above the diagonal the exponent is positive and could overflow.
            decay = tl.exp(tl.where(i[:, None] >= i[None, :], between, float("-inf")))
            weights = decay * delta[None, :] * tl.dot(c, tl.trans(b), input_precision=PRECISION)
            # D on the diagonal: u is then an operand only, and need not come into registers.
            weights += tl.where(i[:, None] == i[None, :], skip, 0.0)
            y = tl.dot(c, state.to(c.dtype), input_precision=PRECISION)
            y *= tl.exp(log_decay)[:, None]
            y = tl.dot(weights.to(u.dtype), u, acc=y, input_precision=PRECISION)
            left = tl.exp(total - log_decay) * delta  # of each token, at the end
            weighted = tl.trans((b.to(tl.float32) * left[:, None]).to(u.dtype))
            state *= tl.exp(total)
            state = tl.dot(weighted, u, acc=state, input_precision=PRECISION)

            y = y.to(z.dtype).to(tl.float32) * silu(z.to(tl.float32))
            y_at = y_base + i[:, None] * (H * P) + p[None, :]
            tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=live_p)
            u_base += Q * u_stride
            z_base += Q * z_stride
            y_base += Q * H * P
            b_base += Q * b_stride
            c_base += Q * c_stride
        if offset + SEGMENT >= count:
            tl.store(slot_at, state.to(cache_ptr.dtype.element_ty), mask=inside)


def plan_scan(tokens: int, requests: int, heads: int, size: int, dtype: torch.dtype) -> Plan:
    """The cut for a step of so many tokens: from its shape alone, lengths are on the device."""
    wide = dtype == torch.float32
    covers = power_of_two(size, 16)
    walk = pick(WIDE_WALK_CONFIGS if wide else WALK_CONFIGS, triton.cdiv(tokens, requests))
    sums = WIDE_SUMS_CONFIG if wide else SUMS_CONFIG
    walk, sums = (replace(c, block=min(c.block, covers)) for c in (walk, sums))
    segment = power_of_two(triton.cdiv(tokens * heads, PROGRAMS))
    return Plan(walk, sums, CARRY_CONFIG, min(max(segment, SEGMENTS[0]), SEGMENTS[1]))


def scan_prefill(
    inputs: ScanInputs,
    params: ScanParams,
    cache: Tensor,
    slots: Tensor,
    query_start_loc: Tensor,
    has_past: Tensor,
    chunk: int = 64,
    plan: Plan | None = None,
) -> Tensor:
    """Several tokens a request, each continuing from its slot's state. As the twin → y [T, H, P].

    `chunk` is the twin's and has no effect here: the plan says how tokens are cut.
    """
    inputs, params = check_scan("scan_prefill", inputs, params, cache, slots)
    (tokens, heads, size), state = inputs.u.shape, cache.shape[3]
    requests = slots.shape[0]
    require(
        query_start_loc.shape == (requests + 1,) and has_past.shape == (requests,),
        f"scan_prefill: query_start_loc {list(query_start_loc.shape)} and has_past "
        f"{list(has_past.shape)} do not fit {requests} requests",
    )
    plan = plan or plan_scan(tokens, requests, heads, size, inputs.u.dtype)
    y = torch.empty((tokens, heads, size), dtype=inputs.z.dtype, device=cache.device)
    memory = (cache, slots, query_start_loc, has_past.view(torch.uint8))  # bits differ, bytes not
    if tokens <= plan.segment:  # nobody has a second segment: there is nothing to read
        states = torch.empty(1, dtype=torch.float32, device=cache.device)
    else:
        states = segment_states(inputs, params, *memory, plan.segment, (plan.sums, plan.carry))
    walk = plan.walk
    launch(
        scan_kernel,
        (heads * triton.cdiv(size, walk.block), tokens // plan.segment + requests),
        *scan_pointers(inputs, params),
        *memory,
        states,
        y,
        requests,
        plan.segment,
        *scan_strides(inputs),
        config=walk,
        H=heads,
        P=size,
        N=state,
        Q=walk.tile,
        BLOCK_P=walk.block,
        BLOCK_N=power_of_two(state, 16),
        PRECISION=precision(inputs.u.dtype),
        STAGES=walk.stages,
    )
    return y
