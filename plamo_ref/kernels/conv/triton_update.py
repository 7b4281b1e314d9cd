# mypy: disallow-untyped-defs=False
"""One step of the short causal convolution for each request, with its memory in state slots.

Formula and twin: plamo_ref/kernels/conv/twin.py.

Invariant: only the given slots are written. The arithmetic is float32 and rounded once.
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
    with_unit_stride,
)

# Size: channels. A block is channels.
UPDATE_CONFIGS = (Config(up_to=1 << 30, block=256, warps=4),)


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def conv_update_kernel(
    u_ptr,
    weight_ptr,
    cache_ptr,
    slots_ptr,
    out_ptr,
    u_stride,
    u_stride_head,
    weight_stride,
    C,
    P: tl.constexpr,
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
    u_at = u_ptr + row * u_stride + (channel // P) * u_stride_head + channel % P
    newest = tl.load(u_at, mask=channel < C, other=0.0)
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
    """One token a request. u [R, C] or [R, H, P], weight [C, K], cache [S, C, K-1] → [R, C]."""
    (requests, channels), u = (u.shape[0], weight.shape[0]), by_heads(u)
    taps = check_conv(u, weight, cache, slots)
    weight = with_unit_stride(weight)
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
        u.stride(1),
        weight.stride(0),
        channels,
        config=config,
        P=u.shape[2],
        K=taps,
        BLOCK_K=power_of_two(taps),
        BLOCK=config.block,
        PDL=pdl,
    )
    return out


def by_heads(u: Tensor) -> Tensor:
    """[T, C] or [T, H, P] → [T, H, P], heads as far apart as they are, channels side by side."""
    return with_unit_stride(u if u.dim() == 3 else u[:, None])


def check_conv(u: Tensor, weight: Tensor, cache: Tensor, slots: Tensor) -> int:
    """Returns the number of taps."""
    channels, taps = weight.shape
    fits = u.shape[1:].numel() == channels and cache.shape[1:] == (channels, taps - 1)
    if not (fits and slots.dim() == 1):
        raise KernelError(
            f"convolution: u {list(u.shape)}, weight {list(weight.shape)} and cache "
            f"{list(cache.shape)} do not fit together"
        )
    if not (cache.is_contiguous()):
        raise KernelError("convolution: the cache must be contiguous")
    return taps
