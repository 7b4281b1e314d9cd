# mypy: disallow-untyped-defs=False
"""The recurrence over many tokens, chunk by chunk, each chunk as products of matrices.

Formula and twin: plamo_ref/kernels/ssm/twin.py. Within a chunk, with l_t the sum of Δ A up to t:

    y_t = Σ_{s ≤ t} exp(l_t - l_s) (C_t·B_s) Δ_s u_s + exp(l_t) C_t S + D u_t
    S  ← exp(l_end) S + Σ_s exp(l_end - l_s) Δ_s u_s ⊗ B_s         S: the state before the chunk

One program walks through the chunks of a segment of one request, for one head, with the state in
its registers. Short requests are one segment, from the slot into the slot. A long one alone would
leave most of the GPU idle: it is cut, and triton_segments.py gives each segment the state before
it, for the price of reading u a second time.

Invariant: the state of a request without a past is not read; only the given slots are written.
Source: Dao and Gu, "Transformers are SSMs" (2024), section 6.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import (
    find_request,
    launch,
    power_of_two,
    precision,
    silu,
)
from plamo_ref.kernels.ssm.triton_decay import chunk_decays
from plamo_ref.kernels.ssm.triton_photograph import scan_photographs
from plamo_ref.kernels.ssm.triton_plan import Plan, plan_scan
from plamo_ref.kernels.ssm.triton_segments import segment_states
from plamo_ref.kernels.ssm.triton_state import check_scan
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams


@triton.jit(
    do_not_specialize=["requests", "T"],
    do_not_specialize_on_alignment=[
        "slots_ptr",
        "starts_ptr",
        "has_past_ptr",
        "delta_ptr",
        "log_decay_ptr",
        "log_step_ptr",
    ],
)
def scan_kernel(
    u_ptr,
    z_ptr,
    b_ptr,
    c_ptr,
    d_ptr,
    delta_ptr,
    log_decay_ptr,
    log_step_ptr,
    cache_ptr,
    slots_ptr,
    starts_ptr,
    has_past_ptr,
    states_ptr,
    y_ptr,
    requests,
    T,
    SEGMENT,
    u_stride,
    u_stride_head,
    z_stride,
    z_stride_head,
    b_stride,
    c_stride,
    H: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
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
        skip = tl.load(d_ptr + head)

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
        u_base = u_ptr + t * u_stride + head * u_stride_head + p[None, :]
        z_base = z_ptr + t * z_stride + head * z_stride_head + p[None, :]
        y_base = y_ptr + (t * H + head) * P + p[None, :]
        b_base, c_base = b_ptr + t * b_stride + n[None, :], c_ptr + t * c_stride + n[None, :]
        of_head = head.to(tl.int64) * T + t
        delta_base, log_base = delta_ptr + of_head, log_decay_ptr + of_head
        step_base = log_step_ptr + of_head
        at = 0
        for _ in range(0, tokens, Q):
            token = at + i
            live, row = token < tokens, token[:, None]
            live_p = (row < tokens) & p_in[None, :]
            live_n = (row < tokens) & n_in[None, :]
            c = tl.load(c_base + row * c_stride, mask=live_n, other=0.0)  # [Q, N]
            b = tl.load(b_base + row * b_stride, mask=live_n, other=0.0)  # [Q, N]
            u = tl.load(u_base + row * u_stride, mask=live_p, other=0.0)  # [Q, P]
            # Tokens past the end have Δ = 0 and have forgotten everything: they add nothing.
            delta = tl.load(delta_base + token, mask=live, other=0.0)
            log_decay = tl.load(log_base + token, mask=live, other=float("-inf"))
            log_step = tl.load(step_base + token, mask=live, other=0.0)
            # Forward by what is there, which the compiler cannot foresee: of a constant step it
            # would make one 64-bit pointer per load, and run out of registers.
            length = tl.minimum(tokens - at, Q)
            total = tl.load(log_base + (at + length - 1))
            at += length

            # Masked before exp: above the diagonal the exponent is positive and could overflow. On
            # it, l and m would not cancel exactly; D is put there too: then u is an operand only,
            # and need not come into registers.
            between = log_decay[:, None] - log_step[None, :]  # [Q, Q]
            decayed = tl.exp2(tl.where(i[:, None] > i[None, :], between, float("-inf")))
            weights = tl.dot(c, tl.trans(b), input_precision=PRECISION)
            here = delta[:, None] * weights + skip
            weights = tl.where(i[:, None] == i[None, :], here, decayed * weights).to(u.dtype)
            y = tl.dot(weights, u, input_precision=PRECISION)
            carried = (c.to(tl.float32) * tl.exp2(log_decay)[:, None]).to(c.dtype)
            y = tl.dot(carried, state.to(c.dtype), acc=y, input_precision=PRECISION)
            # So late for the sake of registers.
            z = tl.load(z_base + row * z_stride, mask=live_p, other=0.0)  # [Q, P]
            # Of each token, at the end; tokens past it are 0 · exp(something harmless).
            left = tl.exp2(tl.where(live, total - log_decay, 0.0)) * delta
            weighted = tl.trans((b.to(tl.float32) * left[:, None]).to(u.dtype))
            state *= tl.exp2(total)
            state = tl.dot(weighted, u, acc=state, input_precision=PRECISION)

            y = y.to(z.dtype).to(tl.float32) * silu(z.to(tl.float32))
            tl.store(y_base + row * (H * P), y.to(y_ptr.dtype.element_ty), mask=live_p)
        if offset + SEGMENT >= count:
            # Read again: pointers kept since the start would be registers lost in the loop.
            slot = tl.load(slots_ptr + request).to(tl.int64)
            rows = (slot * H + head) * P + p[None, :]
            kept = state.to(cache_ptr.dtype.element_ty)
            tl.store(cache_ptr + rows * N + n[:, None], kept, mask=inside)


def scan_prefill(
    inputs: ScanInputs,
    params: ScanParams,
    cache: Tensor,
    slots: Tensor,
    query_start_loc: Tensor,
    has_past: Tensor,
    photographs: Tensor | None = None,
    chunk: int = 64,
    plan: Plan | None = None,
) -> Tensor:
    """Several tokens a request, each continuing from its slot's state. As the twin → y [T, H, P].

    `chunk` is the twin's and has no effect here: the plan says how tokens are cut.
    """
    inputs, params = check_scan("scan_prefill", inputs, params, cache, slots)
    (tokens, heads, size), state = inputs.u.shape, cache.shape[3]
    requests = slots.shape[0]
    if not (query_start_loc.shape == (requests + 1,) and has_past.shape == (requests,)):
        raise KernelError(
            f"scan_prefill: query_start_loc {list(query_start_loc.shape)} and has_past "
            f"{list(has_past.shape)} do not fit {requests} requests"
        )
    plan = plan or plan_scan(inputs.u, requests)
    y = torch.empty((tokens, heads, size), dtype=inputs.z.dtype, device=cache.device)
    memory = (cache, slots, query_start_loc, has_past)
    decays = chunk_decays(inputs, params, query_start_loc, plan.chunk)
    cut = (plan.chunk, plan.segment)
    if tokens <= plan.segment:  # nobody has a second segment: there is nothing to read
        states = torch.empty(1, dtype=torch.float32, device=cache.device)
    else:
        states = segment_states(inputs, decays, *memory, cut, plan.sums, plan.carry)
    if photographs is not None:
        scan_photographs(inputs, decays, *memory, states, photographs, cut, plan.photograph)
    block = min(plan.walk.block, power_of_two(size, 16))
    launch(
        scan_kernel,
        (heads * triton.cdiv(size, block), tokens // plan.segment + requests),
        inputs.u,
        inputs.z,
        inputs.B,
        inputs.C,
        params.D,
        *decays,
        *memory,
        states,
        y,
        requests,
        tokens,
        plan.segment,
        *inputs.u.stride()[:2],
        *inputs.z.stride()[:2],
        inputs.B.stride(0),
        inputs.C.stride(0),
        config=plan.walk,
        H=heads,
        P=size,
        N=state,
        Q=plan.chunk,
        BLOCK_P=block,
        BLOCK_N=power_of_two(state, 16),
        PRECISION=precision(inputs.u.dtype),
    )
    return y
