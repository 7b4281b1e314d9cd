# mypy: disallow-untyped-defs=False
"""The short causal convolution over many tokens of each request.

Formula and twin: plamo_ref/kernels/conv/twin.py.

Invariant: only the given slots are written, each by one program alone; the memory of a request
without a past is never read. The arithmetic is float32 and rounded once. What a photograph needs of
a request's slot is read before that slot is overwritten: in a launch of its own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.conv.triton_update import by_heads, check_conv
from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import (
    Config,
    find_request,
    launch,
    pick,
    power_of_two,
    silu,
    with_unit_stride,
)

# Size: channels. A block is channels, 16 bytes a thread; a tile is tokens of one iteration.
CONFIGS = (Config(up_to=1 << 30, block=256, warps=4, tile=16),)
TOKENS = 64  # of one program: its weights are read once for all of them


@triton.jit(
    do_not_specialize=["requests"],
    do_not_specialize_on_alignment=["slots_ptr", "starts_ptr", "has_past_ptr"],
)
def conv_prefill_kernel(
    u_ptr,
    weight_ptr,
    cache_ptr,
    slots_ptr,
    starts_ptr,
    has_past_ptr,
    out_ptr,
    requests,
    u_stride,
    u_stride_head,
    weight_stride,
    C,
    P: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Two kinds of programs, BLOCK channels each. The first `requests` of them work out a request's
    first K-1 outputs, which need its slot, and its new slot, which needs the old one. The others
    work out the rest, TOKENS tokens each, and never look at a slot."""
    block = tl.program_id(0)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    weight_at = weight_ptr + channel * weight_stride
    of_u = (channel // P) * u_stride_head + channel % P
    if block < requests:
        first = tl.load(starts_ptr + block).to(tl.int64)
        count = (tl.load(starts_ptr + block + 1) - first).to(tl.int32)
        past = channel < tl.where(tl.load(has_past_ptr + block) != 0, C, 0)
        slot = tl.load(slots_ptr + block).to(tl.int64)
        memory_at = cache_ptr + (slot * C + channel) * (K - 1)
        u_at = u_ptr + first * u_stride + of_u[None, :]
        out_at = out_ptr + first * C + channel[None, :]
        _edges(u_at, u_stride, weight_at, memory_at, out_at, count, past, channel, C, K, BLOCK_K)
    else:
        request, offset = find_request(starts_ptr, requests, block - requests, TOKENS)
        first = tl.load(starts_ptr + request).to(tl.int64)
        count = (tl.load(starts_ptr + request + 1) - first).to(tl.int32)
        u_at = u_ptr + (first + offset) * u_stride + of_u[None, :]
        out_at = out_ptr + (first + offset) * C + channel[None, :]
        early = tl.maximum(K - 1 - offset, 0)  # rows that the first kind of programs works out
        stop = tl.minimum(count - offset, TOKENS)
        _rows(u_at, u_stride, weight_at, out_at, early, stop, channel, C, K, TILE)


@triton.jit
def _rows(
    u_at, u_stride, weight_at, out_at, early, stop, channel, C, K: tl.constexpr, TILE: tl.constexpr
):
    """Rows early … stop from u_at on, TILE at a time; the K-1 before them are the request's too.

    A tile is read K times, each time one row on: only the first comes from further than L1.
    """
    weights = ()
    for k in tl.static_range(K):
        weight = tl.load(weight_at + k, mask=channel < C, other=0.0)
        weights = weights + (weight.to(tl.float32)[None, :],)  # type: ignore[assignment]  # noqa: RUF005
    for start in range(0, stop, TILE):
        row = (start + tl.arange(0, TILE))[:, None]
        kept = (row >= early) & (row < stop) & (channel < C)[None, :]
        total = tl.zeros([TILE, channel.shape[0]], dtype=tl.float32)
        for k in tl.static_range(K):
            x = tl.load(u_at + (row - (K - 1) + k) * u_stride, mask=kept, other=0.0)
            total += x.to(tl.float32) * weights[k]
        tl.store(out_at + row * C, silu(total).to(out_at.dtype.element_ty), mask=kept)


@triton.jit
def _edges(
    u_at,
    u_stride,
    weight_at,
    memory_at,
    out_at,
    count,
    past,
    channel,
    C,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The first K-1 outputs of a request and its slot's new content.

    Inputs are counted from the request's start: those before 0 are in the slot, place K-1+i.
    """
    inside = (channel < C)[None, :]
    known = past[None, :]
    row = tl.arange(0, BLOCK_K)[:, None]
    early = (row < K - 1) & (row < count)
    total = tl.zeros([BLOCK_K, channel.shape[0]], dtype=tl.float32)
    for k in tl.static_range(K):
        place = row - (K - 1) + k
        new = tl.load(u_at + place * u_stride, mask=early & (place >= 0) & inside, other=0.0)
        old_at = memory_at[None, :] + place + K - 1
        old = tl.load(old_at, mask=early & (place < 0) & known, other=0.0)
        weight = tl.load(weight_at + k, mask=channel < C, other=0.0).to(tl.float32)
        total += (new.to(tl.float32) + old.to(tl.float32)) * weight[None, :]  # one of them is 0
    tl.store(out_at + row * C, silu(total).to(out_at.dtype.element_ty), mask=early & inside)

    newest = _newest(u_at, u_stride, memory_at, count, inside, known, K, BLOCK_K)
    # Another thread may still be reading what is written next.
    tl.debug_barrier()
    tl.store(memory_at[None, :] + row, newest, mask=(row < K - 1) & inside)


@triton.jit
def _newest(
    u_at, u_stride, memory_at, count, inside, known, K: tl.constexpr, BLOCK_K: tl.constexpr
):
    """What a slot holds after `count` inputs: the last K-1, the older of which it may have had."""
    row = tl.arange(0, BLOCK_K)[:, None]
    left = count - (K - 1) + row
    in_slot = row < K - 1
    fresh_at = u_at + left.to(tl.int64) * u_stride
    fresh = tl.load(fresh_at, mask=in_slot & (left >= 0) & inside, other=0.0)
    stale_at = memory_at[None, :] + left + K - 1
    stale = tl.load(stale_at, mask=in_slot & (left < 0) & known, other=0.0)
    return (fresh.to(tl.float32) + stale.to(tl.float32)).to(memory_at.dtype.element_ty)


@triton.jit(
    do_not_specialize_on_alignment=["photographs_ptr", "slots_ptr", "starts_ptr", "has_past_ptr"]
)
def conv_photograph_kernel(
    u_ptr,
    cache_ptr,
    slots_ptr,
    starts_ptr,
    has_past_ptr,
    photographs_ptr,
    u_stride,
    u_stride_head,
    C,
    P: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What one photograph's slot is to hold, for BLOCK channels."""
    photograph_at = photographs_ptr + 3 * tl.program_id(0)
    request, end = tl.load(photograph_at), tl.load(photograph_at + 1).to(tl.int32)
    own = tl.load(photograph_at + 2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(starts_ptr + request).to(tl.int64)
    past = channel < tl.where(tl.load(has_past_ptr + request) != 0, C, 0)
    slot = tl.load(slots_ptr + request).to(tl.int64)
    u_at = u_ptr + first * u_stride + (channel // P * u_stride_head + channel % P)[None, :]
    memory_at = cache_ptr + (slot * C + channel) * (K - 1)
    inside = (channel < C)[None, :]
    newest = _newest(u_at, u_stride, memory_at, end, inside, past[None, :], K, BLOCK_K)
    row = tl.arange(0, BLOCK_K)[:, None]
    own_at = cache_ptr + ((own * C + channel) * (K - 1))[None, :] + row
    tl.store(own_at, newest, mask=(row < K - 1) & inside)


def conv_prefill(
    u: Tensor,
    weight: Tensor,
    cache: Tensor,
    slots: Tensor,
    query_start_loc: Tensor,
    has_past: Tensor,
    photographs: Tensor | None = None,
) -> Tensor:
    """Several tokens a request, one request after the other. Arguments as of the twin → [T, C]."""
    tokens, channels, requests = u.shape[0], weight.shape[0], slots.shape[0]
    u = by_heads(u)
    taps = check_conv(u, weight, cache, slots)
    if not (query_start_loc.shape == (requests + 1,) and has_past.shape == (requests,)):
        raise KernelError(
            f"conv_prefill: query_start_loc {list(query_start_loc.shape)} and has_past "
            f"{list(has_past.shape)} do not fit {requests} requests"
        )
    weight = with_unit_stride(weight)
    out = torch.empty((tokens, channels), dtype=u.dtype, device=u.device)
    config = pick(CONFIGS, channels)
    memory = (cache, slots, query_start_loc, has_past)
    sizes = {"P": u.shape[2], "K": taps, "BLOCK_K": power_of_two(max(1, taps - 1))}
    if photographs is not None:
        launch(
            conv_photograph_kernel,
            (photographs.shape[0], triton.cdiv(channels, config.block)),
            u,
            *memory,
            photographs,
            *u.stride()[:2],
            channels,
            config=config,
            **sizes,
            BLOCK=config.block,
        )
    launch(
        conv_prefill_kernel,
        (tokens // TOKENS + 2 * requests, triton.cdiv(channels, config.block)),
        u,
        weight,
        *memory,
        out,
        requests,
        *u.stride()[:2],
        weight.stride(0),
        channels,
        config=config,
        **sizes,
        TOKENS=TOKENS,
        TILE=config.tile,
        BLOCK=config.block,
    )
    return out
