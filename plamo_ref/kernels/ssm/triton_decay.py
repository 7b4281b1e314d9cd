# mypy: disallow-untyped-defs=False
"""Step sizes and decays of all tokens, worked out once for all kernels of a scan.

    Δ_t = softplus(dt_t + bias)        l_t = Σ Δ_s A, over s from the start of t's chunk up to t
    m_t = l_t - log Δ_t                so that exp(l_t - m_s) is Δ_s, decayed from s to t

Logarithms are to base 2: 2^x is one instruction of the GPU, e^x is five.

Invariant: chunks are counted from the start of each request. Written [H, T]: the kernels that
follow take one head at a time, and dt comes with all heads of a token side by side.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.launch import Config, find_request, launch, softplus
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams

LOG2_E = tl.constexpr(1.4426950408889634)
HEADS = 16  # of one program
DECAY_CONFIG = Config(up_to=1 << 30, block=HEADS, warps=4)


@triton.jit(
    do_not_specialize=["requests", "T"],
    do_not_specialize_on_alignment=[
        "starts_ptr",
        "dt_ptr",
        "delta_ptr",
        "log_decay_ptr",
        "log_step_ptr",
    ],
)
def decay_kernel(
    dt_ptr,
    a_ptr,
    bias_ptr,
    starts_ptr,
    delta_ptr,
    log_decay_ptr,
    log_step_ptr,
    requests,
    T,
    dt_stride,
    H: tl.constexpr,
    Q: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One chunk of one request, for BLOCK_H heads."""
    request, offset = find_request(starts_ptr, requests, tl.program_id(0), Q)
    first = tl.load(starts_ptr + request).to(tl.int64)
    count = (tl.load(starts_ptr + request + 1) - first).to(tl.int32)
    if offset < count:
        head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
        i = tl.arange(0, Q)[:, None]
        inside = (offset + i < count) & (head < H)
        a = tl.load(a_ptr + head, mask=head < H, other=0.0) * LOG2_E
        bias = tl.load(bias_ptr + head, mask=head < H, other=0.0)
        t = first + offset
        dt_at = dt_ptr + t * dt_stride + i * dt_stride + head
        delta = softplus(tl.load(dt_at, mask=inside, other=0.0).to(tl.float32) + bias)
        log_decay = tl.cumsum(delta * a, axis=0)
        place = head.to(tl.int64) * T + t + i
        tl.store(delta_ptr + place, delta, mask=inside)
        tl.store(log_decay_ptr + place, log_decay, mask=inside)
        tl.store(log_step_ptr + place, log_decay - tl.log2(delta), mask=inside)


def chunk_decays(
    inputs: ScanInputs, params: ScanParams, query_start_loc: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Δ, l and m of every token, [H, T] float32 each; inputs as `check_scan` leaves them."""
    (tokens, heads), requests = inputs.dt.shape, query_start_loc.shape[0] - 1
    made = torch.empty((3, heads, tokens), dtype=torch.float32, device=inputs.dt.device)
    delta, log_decay, log_step = made.unbind()
    launch(
        decay_kernel,
        (tokens // chunk + requests, triton.cdiv(heads, HEADS)),
        inputs.dt,
        params.A,
        params.dt_bias,
        query_start_loc,
        delta,
        log_decay,
        log_step,
        requests,
        tokens,
        inputs.dt.stride(0),
        config=DECAY_CONFIG,
        H=heads,
        Q=chunk,
        BLOCK_H=HEADS,
    )
    return delta, log_decay, log_step
