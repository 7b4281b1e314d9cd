# mypy: disallow-untyped-defs=False
"""The short causal convolution and its memory in state slots, one pass each way.

Formula and twins: plamo_ref/kernels/conv.py.

Invariant: only the given slots are written; the memory of a request without a past is never read.
The arithmetic is float32 and rounded once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.errors import require
from plamo_ref.kernels.triton_launch import (
    Config,
    find_request,
    launch,
    pick,
    power_of_two,
    ready,
    silu,
    with_unit_stride,
)

# Size: channels. A block is channels.
UPDATE_CONFIGS = (Config(up_to=1 << 30, block=256, warps=4),)
PREFILL_CONFIGS = (Config(up_to=1 << 30, block=128, warps=4),)
PREFILL_TOKENS = 16  # of one program


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def conv_update_kernel(
    u_ptr,
    weight_ptr,
    cache_ptr,
    slots_ptr,
    out_ptr,
    u_stride,
    weight_stride,
    C,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """One token of one request, BLOCK channels: one tile of the K newest inputs of each."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tap = tl.arange(0, BLOCK_K)[None, :]
    inside = (channel < C)[:, None] & (tap < K)
    weight = tl.load(weight_ptr + channel[:, None] * weight_stride + tap, mask=inside, other=0.0)
    ready(PDL)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    memory = cache_ptr + (slot * C + channel)[:, None] * (K - 1) + tap
    newest = tl.load(u_ptr + row * u_stride + channel, mask=channel < C, other=0.0)
    past = tl.load(memory, mask=inside & (tap < K - 1), other=0.0)
    inputs = tl.where(tap < K - 1, past.to(tl.float32), newest.to(tl.float32)[:, None])
    y = silu(tl.sum(inputs * weight.to(tl.float32), axis=1))
    tl.store(out_ptr + row * C + channel, y.to(out_ptr.dtype.element_ty), mask=channel < C)
    # The memory moves on by one place, into which another thread may still be looking.
    tl.debug_barrier()
    tl.store(memory - 1, inputs.to(cache_ptr.dtype.element_ty), mask=inside & (tap > 0))


def conv_update(
    u: Tensor, weight: Tensor, cache: Tensor, slots: Tensor, *, pdl: bool = False
) -> Tensor:
    """One token a request. u [R, C], weight [C, K], cache [S, C, K-1], slots [R] → [R, C]."""
    requests, channels = u.shape
    taps = _check(u, weight, cache, slots)
    u, weight = with_unit_stride(u), with_unit_stride(weight)
    out = torch.empty((requests, channels), dtype=u.dtype, device=u.device)
    config = pick(UPDATE_CONFIGS, channels)
    launch(
        conv_update_kernel,
        (requests, triton.cdiv(channels, config.block)),
        u,
        weight,
        cache,
        slots,
        out,
        u.stride(0),
        weight.stride(0),
        channels,
        config=config,
        K=taps,
        BLOCK_K=power_of_two(taps),
        BLOCK=config.block,
        PDL=pdl,
    )
    return out


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
    weight_stride,
    C,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """TOKENS tokens of one request, BLOCK channels.

    Inputs are counted from the request's start: those before 0 are in the slot, place K-1+i.
    """
    request, offset = find_request(starts_ptr, requests, tl.program_id(0), TOKENS)
    first = tl.load(starts_ptr + request).to(tl.int64)
    count = (tl.load(starts_ptr + request + 1) - first).to(tl.int32)
    if offset < count or offset == 0:
        channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = channel < C
        past = channel < tl.where(tl.load(has_past_ptr + request) != 0, C, 0)
        slot = tl.load(slots_ptr + request).to(tl.int64)
        memory = cache_ptr + (slot * C + channel) * (K - 1)
        # From the block's first token on: offsets that are small need one register, not two.
        source = u_ptr + (first + offset) * u_stride + channel[None, :]
        token = tl.arange(0, TOKENS)
        total = tl.zeros((TOKENS, BLOCK), dtype=tl.float32)
        for k in tl.static_range(K):
            place = (token - (K - 1) + k)[:, None]
            new = (offset + place >= 0) & (offset + place < count) & inside[None, :]
            x = tl.load(source + place * u_stride, mask=new, other=0.0).to(tl.float32)
            old = (offset + place < 0) & past[None, :]
            x += tl.load(memory[None, :] + place + K - 1, mask=old, other=0.0).to(tl.float32)
            weight = tl.load(weight_ptr + channel * weight_stride + k, mask=inside, other=0.0)
            total += x * weight.to(tl.float32)[None, :]
        destination = out_ptr + (first + offset) * C + token[:, None] * C + channel[None, :]
        kept = (offset + token < count)[:, None] & inside[None, :]
        tl.store(destination, silu(total).to(out_ptr.dtype.element_ty), mask=kept)

        if offset == 0:
            # The first block alone touches the slot: it needs the old content, so no other
            # program may replace it, and the newest inputs can be read from u at any time.
            kept_at = tl.arange(0, BLOCK_K)[:, None]
            left = count - (K - 1) + kept_at
            in_slot = (kept_at < K - 1) & inside[None, :]
            fresh, stale = (left >= 0) & in_slot, (left < 0) & in_slot & past[None, :]
            newest = tl.load(source + left.to(tl.int64) * u_stride, mask=fresh, other=0.0)
            kept_on = tl.load(memory[None, :] + left + K - 1, mask=stale, other=0.0)
            newest = newest.to(tl.float32) + kept_on.to(tl.float32)  # one of the two is 0
            # Another thread may still be reading what is written next.
            tl.debug_barrier()
            newest = newest.to(cache_ptr.dtype.element_ty)
            tl.store(memory[None, :] + kept_at, newest, mask=in_slot)


def conv_prefill(
    u: Tensor,
    weight: Tensor,
    cache: Tensor,
    slots: Tensor,
    query_start_loc: Tensor,
    has_past: Tensor,
) -> Tensor:
    """Several tokens a request, one request after the other. Arguments as of the twin → [T, C]."""
    (tokens, channels), requests = u.shape, slots.shape[0]
    taps = _check(u, weight, cache, slots)
    require(
        query_start_loc.shape == (requests + 1,) and has_past.shape == (requests,),
        f"conv_prefill: query_start_loc {list(query_start_loc.shape)} and has_past "
        f"{list(has_past.shape)} do not fit {requests} requests",
    )
    u, weight = with_unit_stride(u), with_unit_stride(weight)
    out = torch.empty((tokens, channels), dtype=u.dtype, device=u.device)
    config = pick(PREFILL_CONFIGS, channels)
    launch(
        conv_prefill_kernel,
        (tokens // PREFILL_TOKENS + requests, triton.cdiv(channels, config.block)),
        u,
        weight,
        cache,
        slots,
        query_start_loc,
        has_past.view(torch.uint8),  # a byte is a byte everywhere, a bit is not
        out,
        requests,
        u.stride(0),
        weight.stride(0),
        channels,
        config=config,
        K=taps,
        BLOCK_K=power_of_two(max(1, taps - 1)),
        TOKENS=PREFILL_TOKENS,
        BLOCK=config.block,
    )
    return out


def _check(u: Tensor, weight: Tensor, cache: Tensor, slots: Tensor) -> int:
    """Returns the number of taps."""
    channels, taps = weight.shape
    require(
        u.shape[1] == channels and cache.shape[1:] == (channels, taps - 1) and slots.dim() == 1,
        f"convolution: u {list(u.shape)}, weight {list(weight.shape)} and cache "
        f"{list(cache.shape)} do not fit together",
    )
    require(cache.is_contiguous(), "convolution: the cache must be contiguous")
    return taps
