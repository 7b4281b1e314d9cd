# mypy: disallow-untyped-defs=False
"""The recurrence over many tokens, chunk by chunk, each chunk as products of matrices.

Formula and twin: plamo_ref/kernels/ssm.py. Within a chunk, with l_t the sum of Δ A up to t:

    y_t = Σ_{s ≤ t} exp(l_t - l_s) (C_t·B_s) Δ_s u_s + exp(l_t) C_t S      S: state before the chunk
    S  ← exp(l_end) S + Σ_s exp(l_end - l_s) Δ_s u_s ⊗ B_s

Invariant: the state of a request without a past is not read; only the given slots are written.
One program walks through all chunks of one request, one head and a part of P with the state in
its registers: the state is read once and written once however long the prompt.
Source: Dao and Gu, "Transformers are SSMs" (2024), section 6.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.errors import require
from plamo_ref.kernels.ssm import ScanInputs, ScanParams
from plamo_ref.kernels.triton_launch import (
    Config,
    launch,
    pick,
    power_of_two,
    precision,
    silu,
    softplus,
)
from plamo_ref.kernels.triton_state import check_scan, scan_pointers, scan_strides

# Size: P. A block is rows of P, a tile a chunk. The [Q, Q] weights are worked out anew by each of
# the P / block programs of a head: 32 tokens cost half the products that 64 do, and leave registers
# for two programs on a multiprocessor; 64 by 32 need all of them, 128 spill.
SCAN_CONFIGS = (
    Config(up_to=16, block=16, warps=4, tile=64),
    Config(up_to=1 << 30, block=32, warps=4, tile=32),
)
# float32: each operand of tf32x3 in two halves, so smaller tiles.
WIDE_SCAN_CONFIGS = (Config(up_to=1 << 30, block=16, warps=4, tile=32),)
LEAST_CHUNK = 16  # products of matrices need it


@triton.jit(
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
    y_ptr,
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
):
    """All chunks of one request, for BLOCK_P rows of one head."""
    BLOCKS: tl.constexpr = (P + BLOCK_P - 1) // BLOCK_P
    request = tl.program_id(1)
    head = tl.program_id(0) // BLOCKS
    p = (tl.program_id(0) % BLOCKS) * BLOCK_P + tl.arange(0, BLOCK_P)
    n, i = tl.arange(0, BLOCK_N), tl.arange(0, Q)
    p_in, n_in = p < P, n < N

    # Transposed, [N, P]: then no product below has to transpose it.
    slot = tl.load(slots_ptr + request).to(tl.int64)
    state_ptr = cache_ptr + (slot * H + head) * P * N + p[None, :] * N + n[:, None]
    inside = p_in[None, :] & n_in[:, None]
    known = p < tl.where(tl.load(has_past_ptr + request) != 0, P, 0)
    state = tl.load(state_ptr, mask=inside & known[None, :], other=0.0).to(tl.float32)

    a, skip, bias = tl.load(a_ptr + head), tl.load(d_ptr + head), tl.load(bias_ptr + head)
    first = tl.load(starts_ptr + request).to(tl.int64)
    count = (tl.load(starts_ptr + request + 1) - first).to(tl.int32)
    for start in range(0, count, Q):
        live = start + i < count
        t = first + start  # the chunk's first token; offsets from it are small: one register each
        dt_at = dt_ptr + t * dt_stride + i * dt_stride + head
        dt = tl.load(dt_at, mask=live, other=0.0).to(tl.float32)
        # Tokens past the end have Δ = 0: they add nothing and let nothing decay.
        delta = tl.where(live, softplus(dt + bias), 0.0)
        log_decay = tl.cumsum(delta * a, axis=0)
        # The last one's own value: a sum in another order would not cancel against it exactly,
        # and where decays are strong the exponents are large.
        last = tl.minimum(count - start, Q) - 1
        total = tl.sum(tl.where(i == last, log_decay, 0.0), axis=0)

        u_at = u_ptr + t * u_stride + head * u_stride_head + i[:, None] * u_stride + p[None, :]
        live_p = live[:, None] & p_in[None, :]
        u = tl.load(u_at, mask=live_p, other=0.0).to(tl.float32)  # [Q, P]
        du = delta[:, None] * u
        c_at = c_ptr + t * c_stride + i[:, None] * c_stride + n[None, :]
        c = tl.load(c_at, mask=live[:, None] & n_in[None, :], other=0.0)  # [Q, N]
        b_at = b_ptr + t * b_stride + i[None, :] * b_stride + n[:, None]
        b = tl.load(b_at, mask=live[None, :] & n_in[:, None], other=0.0)  # [N, Q]

        between = log_decay[:, None] - log_decay[None, :]  # [Q, Q]
        # Masked before exp: above the diagonal the exponent is positive and could overflow.
        decay = tl.exp(tl.where(i[:, None] >= i[None, :], between, float("-inf")))
        weights = decay * tl.dot(c, b, input_precision=PRECISION)
        carried = tl.dot(c.to(tl.float32), state, input_precision=PRECISION)
        y = tl.exp(log_decay)[:, None] * carried
        y = tl.dot(weights, du, acc=y, input_precision=PRECISION)
        left = tl.exp(total - log_decay)[:, None] * du  # of each token's part, at the end
        state = state * tl.exp(total)
        state = tl.dot(b.to(tl.float32), left, acc=state, input_precision=PRECISION)

        z_at = z_ptr + t * z_stride + head * z_stride_head + i[:, None] * z_stride + p[None, :]
        z = tl.load(z_at, mask=live_p, other=0.0)
        y = (y + skip * u).to(z.dtype).to(tl.float32) * silu(z.to(tl.float32))
        y_at = y_ptr + (t * H + head) * P + i[:, None] * (H * P) + p[None, :]
        tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=live_p)
    tl.store(state_ptr, state.to(cache_ptr.dtype.element_ty), mask=inside)


def scan_prefill(
    inputs: ScanInputs,
    params: ScanParams,
    cache: Tensor,
    slots: Tensor,
    query_start_loc: Tensor,
    has_past: Tensor,
    chunk: int = 64,
) -> Tensor:
    """Several tokens a request, each continuing from its slot's state. As the twin → y [T, H, P].

    `chunk` is a wish: products need 16, the registers allow the tile of the table.
    """
    inputs, params = check_scan("scan_prefill", inputs, params, cache, slots)
    (tokens, heads, size), state = inputs.u.shape, cache.shape[3]
    requests = slots.shape[0]
    require(
        query_start_loc.shape == (requests + 1,) and has_past.shape == (requests,),
        f"scan_prefill: query_start_loc {list(query_start_loc.shape)} and has_past "
        f"{list(has_past.shape)} do not fit {requests} requests",
    )
    y = torch.empty((tokens, heads, size), dtype=inputs.z.dtype, device=cache.device)
    wide = inputs.u.dtype == torch.float32
    config = pick(WIDE_SCAN_CONFIGS if wide else SCAN_CONFIGS, size)
    launch(
        scan_kernel,
        (heads * triton.cdiv(size, config.block), requests),
        *scan_pointers(inputs, params),
        cache,
        slots,
        query_start_loc,
        has_past.view(torch.uint8),  # a byte is a byte everywhere, a bit is not
        y,
        *scan_strides(inputs),
        config=config,
        H=heads,
        P=size,
        N=state,
        Q=min(power_of_two(chunk, LEAST_CHUNK), config.tile),
        BLOCK_P=config.block,
        BLOCK_N=power_of_two(state, 16),
        PRECISION=precision(inputs.u.dtype),
    )
    return y
