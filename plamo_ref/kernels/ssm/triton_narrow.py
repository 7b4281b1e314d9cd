# mypy: disallow-untyped-defs=False
"""States kept in few bits: one step, and prompts.

Formula and twin: plamo_ref/kernels/ssm/narrow.py. A decode step reads, moves and writes a head's
bytes in one program (triton_state.py). A prompt reads its state once and writes it once, however
long it is: there the states are widened into a memory of their own, in which the kernels of the
scan find and leave them as ever, and from there they are kept.

Invariant: of a request without a past nothing is read; only the given slots are written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.batch import NarrowCache
from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import Config, launch, pick, power_of_two
from plamo_ref.kernels.linear.triton_numbers import as_stored
from plamo_ref.kernels.ssm.narrow import ReplayCache, own_slots
from plamo_ref.kernels.ssm.triton_rounding import store_state, widened
from plamo_ref.kernels.ssm.triton_scan import scan_prefill
from plamo_ref.kernels.ssm.triton_state import STATE_CONFIGS, check_scan, launch_update
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams

FORMATS = {torch.float8_e4m3fn: "fp8", torch.int8: "int8", torch.bfloat16: "bfloat16"}
# Size: requests. A program has a head: it has a scale. Of 256 requests (and no others) both were
# measured, on an H200.
HEAD_CONFIGS = (
    Config(up_to=128, block=1 << 30, warps=8),
    Config(up_to=1 << 30, block=1 << 30, warps=4),
)
HEAD_CONFIG = HEAD_CONFIGS[0]  # of prompts


@triton.jit(do_not_specialize_on_alignment=["slots_ptr", "has_past_ptr", "scales_ptr"])
def widen_state_kernel(
    cache_ptr,
    scales_ptr,
    slots_ptr,
    has_past_ptr,
    states_ptr,
    H: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    FORMAT: tl.constexpr,
    DECODE: tl.constexpr,
):
    """The state of one head of one request, if it has a past."""
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if tl.load(has_past_ptr + row) != 0:
        element = tl.arange(0, BLOCK)
        slot = tl.load(slots_ptr + row).to(tl.int64)
        kept = tl.load(
            cache_ptr + (slot * H + head) * SIZE + element, mask=element < SIZE, other=0.0
        )
        state = widened(kept, FORMAT, DECODE)
        if FORMAT != "bfloat16":
            state *= tl.load(scales_ptr + slot * H + head)
        tl.store(states_ptr + (row * H + head) * SIZE + element, state, mask=element < SIZE)


@triton.jit(
    do_not_specialize=["requests"],
    do_not_specialize_on_alignment=[
        "scales_ptr",
        "slots_ptr",
        "lengths_ptr",
        "starts_ptr",
        "photographs_ptr",
    ],
)
def keep_state_kernel(
    states_ptr,
    a_ptr,
    cache_ptr,
    scales_ptr,
    slots_ptr,
    lengths_ptr,
    starts_ptr,
    photographs_ptr,
    requests,
    H: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    FORMAT: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    DECODE: tl.constexpr,
):
    """The state of one head of one request, or, behind them, of one photograph."""
    head, row = tl.program_id(0), tl.program_id(1)
    if row < requests:
        slot = tl.load(slots_ptr + row)
        position = tl.load(lengths_ptr + row)
    else:
        photograph_at = photographs_ptr + 3 * (row - requests)
        of, slot = tl.load(photograph_at), tl.load(photograph_at + 2)
        count = tl.load(starts_ptr + of + 1) - tl.load(starts_ptr + of)
        position = tl.load(lengths_ptr + of) - count + tl.load(photograph_at + 1)
    element, slot = tl.arange(0, BLOCK), slot.to(tl.int64)
    state_at = states_ptr + (row.to(tl.int64) * H + head) * SIZE + element
    state = tl.load(state_at, mask=element < SIZE, other=0.0)
    where = (cache_ptr + (slot * H + head) * SIZE + element, element < SIZE, element)
    how = (scales_ptr + slot * H + head, tl.load(a_ptr + head), position)
    store_state(state, *where, *how, FORMAT, STOCHASTIC, DECODE)


def narrow_state_update(
    inputs: ScanInputs,
    params: ScanParams,
    cache: NarrowCache,
    slots: Tensor,
    lengths: Tensor,
    *,
    pdl: bool = False,
) -> Tensor:
    """One token a request. As the twin → y [R, H, P]."""
    name = "narrow_state_update"
    values, scales, kind, decode = stored(name, cache, slots, lengths)
    configs = STATE_CONFIGS if cache.scales is None else HEAD_CONFIGS
    config = pick(configs, len(slots))
    how = (kind, cache.stochastic, decode)
    return launch_update(name, inputs, params, values, slots, (scales, lengths), config, pdl, how)


def narrow_scan_prefill(
    inputs: ScanInputs,
    params: ScanParams,
    cache: NarrowCache,
    slots: Tensor,
    query_start_loc: Tensor,
    has_past: Tensor,
    photographs: Tensor,
    lengths: Tensor,
) -> Tensor:
    """Several tokens a request. As the twin → y [T, H, P]."""
    name = "narrow_scan_prefill"
    values, scales, kind, decode = stored(name, cache, slots, lengths)
    inputs, params = check_scan(name, inputs, params, values, slots)
    requests, heads, size = len(slots), values.shape[1], values[0, 0].numel()
    own, taken = own_slots(slots, photographs)
    states = torch.empty(
        (requests + len(photographs), *values.shape[1:]), dtype=torch.float32, device=values.device
    )
    sizes: dict[str, object] = {"H": heads, "SIZE": size, "BLOCK": power_of_two(size)}
    sizes |= {"FORMAT": kind, "DECODE": decode}
    launch(
        widen_state_kernel,
        (heads, requests),
        *(values, scales, slots, has_past, states),
        config=HEAD_CONFIG,
        **sizes,
    )
    y = scan_prefill(inputs, params, states, own, query_start_loc, has_past, taken)
    launch(
        keep_state_kernel,
        (heads, len(states)),
        *(states, params.A, values, scales, slots, lengths, query_start_loc, photographs),
        requests,
        config=HEAD_CONFIG,
        STOCHASTIC=cache.stochastic,
        **sizes,
    )
    return y


def stored(
    name: str, cache: NarrowCache, slots: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor, str, bool]:
    """The slots' memory as a kernel takes it, scales (any tensor, if there are none), the format,
    and whether the kernel has to make e4m3 by itself."""
    values, scales, kind = cache.ssm, cache.scales, FORMATS.get(cache.ssm.dtype)
    if isinstance(cache, ReplayCache) and cache.is_plain:
        kind = "plain"
    if kind is None or (scales is None) != (kind in ("bfloat16", "plain")):
        raise KernelError(f"{name}: states of {values.dtype} are not kept like this")
    if scales is not None and not (scales.is_contiguous() and scales.shape == values.shape[:2]):
        raise KernelError(
            f"{name}: scales {list(scales.shape)} are not those of {list(values.shape)}"
        )
    if not (values.is_contiguous() and lengths.shape == slots.shape):
        raise KernelError(f"{name}: slots {list(slots.shape)}, but lengths {list(lengths.shape)}")
    decode = kind == "fp8" and as_stored(values)[1]
    values = values.view(torch.uint8) if kind == "fp8" else values
    return values, values if scales is None else scales, kind, decode
