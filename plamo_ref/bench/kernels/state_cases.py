"""Arguments for what has its memory in state slots: convolution and scan.

Invariant: as in cases.py: what must not be read is NaN.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from plamo_ref.batch import NarrowCache
from plamo_ref.bench.kernels.parts import Case, Maker, Shape
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams


def conv_cases(
    make: Maker, shape: Shape, requests: int, counts: Sequence[int], photographs: bool = False
) -> Iterator[Case]:
    channels, item = shape.mamba_heads * shape.size, make.dtype.itemsize
    weight = make.noise(channels, 1, shape.taps)[:, 0, :]
    cache = make.noise(requests + 2, channels, shape.taps - 1)
    slots = make.shuffled(requests + 1)[:requests]
    moved = requests * channels * item * 2 * shape.taps
    beside_z = make.noise(requests, shape.mamba_heads, 2, shape.size)[:, :, 1]
    update = (beside_z, weight, cache, slots)
    yield Case(f"{requests}", "conv_update", update, (2,), moved_bytes=moved)
    moments = _moments(counts) if photographs else []
    starts, has_past, cache, slots, *taken = _parts(
        make, counts, (channels, shape.taps - 1), make.dtype, moments
    )
    # As in_proj leaves it: between two heads of u lies one of z.
    u = make.noise(sum(counts), shape.mamba_heads, 2, shape.size)[:, :, 1]
    label = f"{counts[0]} ×{len(counts)}" + f", {len(moments)} photographs" * photographs
    prefill = (u, weight, cache, slots, starts, has_past, *taken)
    moved = 2 * sum(counts) * channels * item
    yield Case(label, "conv_prefill", prefill, (2,), moved_bytes=moved)


def scan_cases(
    make: Maker,
    shape: Shape,
    requests: int,
    counts: Sequence[int],
    state_dtype: torch.dtype = torch.float32,
    photographs: bool = False,
) -> Iterator[Case]:
    heads, size, state = shape.mamba_heads, shape.size, shape.state
    cache = make.noise(requests + 2, heads, size, state, dtype=state_dtype)
    slots = make.shuffled(requests + 1)[:requests]
    kind = str(state_dtype).removeprefix("torch.")
    item = make.dtype.itemsize
    moved = requests * heads * size * (2 * state * state_dtype.itemsize + 3 * item)
    params = scan_params(make, heads)
    arguments = (scan_inputs(make, shape, requests), params, cache, slots)
    yield Case(f"{requests}, {kind}", "state_update", arguments, (2,), moved_bytes=moved)
    if not counts:
        return
    moments = _moments(counts) if photographs else []
    starts, has_past, cache, slots, *taken = _parts(
        make, counts, (heads, size, state), state_dtype, moments
    )
    tokens = sum(counts)
    inputs = scan_inputs(make, shape, tokens)
    yield Case(
        f"{counts[0]} ×{len(counts)}, {kind}" + f", {len(moments)} photographs" * photographs,
        "scan_prefill",
        (inputs, params, cache, slots, starts, has_past, *taken),
        (2,),
        moved_bytes=tokens * heads * size * 3 * item,
        operations=tokens * heads * (4 * state * size + 64 * (2 * state + 2 * size)),
    )


def scan_inputs(make: Maker, shape: Shape, tokens: int) -> ScanInputs:
    """z strided as the projection leaves it; Δ from far below to far above the usual."""
    heads, size, state = shape.mamba_heads, shape.size, shape.state
    return ScanInputs(
        u=make.noise(tokens, heads, size),
        z=make.noise(tokens, heads, 2, size)[:, :, 0],
        dt=3 * make.noise(tokens, heads) - 2,
        B=make.noise(tokens, state),
        C=make.noise(tokens, state),
    )


def scan_params(make: Maker, heads: int) -> ScanParams:
    wide = torch.promote_types(make.dtype, torch.float32)
    return ScanParams(
        A=-make.noise(heads, dtype=wide).exp(),
        D=make.noise(heads, dtype=wide),
        dt_bias=make.noise(heads, dtype=wide),
    )


# e4m3 and int8, to the nearest and by chance, and bfloat16 by chance.
NARROW = (
    *((kind, chance) for chance in (True, False) for kind in (torch.float8_e4m3fn, torch.int8)),
    (torch.bfloat16, True),
)


def narrow_cases(
    make: Maker,
    shape: Shape,
    requests: int,
    counts: Sequence[int],
    kept: tuple[torch.dtype, bool],
) -> Iterator[Case]:
    """States in few bits, and whether they are rounded by chance. Photographs in every prompt."""
    dtype, stochastic = kept
    heads, size, state = shape.mamba_heads, shape.size, shape.state
    label = f"{str(dtype).removeprefix('torch.')}" + ", by chance" * stochastic
    item, params = make.dtype.itemsize, scan_params(make, heads)
    slots = make.shuffled(requests + 1)[:requests]
    cache = narrow_cache(make, slots, (requests + 2, heads, size, state), *kept)
    lengths = make.ints([7 + 1000 * i for i in range(requests)])
    inputs = scan_inputs(make, shape, requests)
    moved = requests * heads * size * (2 * state * dtype.itemsize + 3 * item)
    arguments = (inputs, params, cache, slots, lengths)
    yield Case(f"{requests}, {label}", "narrow_state_update", arguments, (2,), moved_bytes=moved)
    if not counts:
        return
    of, tokens = len(counts), sum(counts)
    moments = _moments(counts)
    starts = torch.tensor([0, *counts], device=make.device).cumsum(0)
    has_past = make.ints([i % 2 for i in range(of)])
    places = make.shuffled(of + len(moments) + 1)
    taken = [[*moment, slot] for moment, slot in zip(moments, places[of:].tolist(), strict=False)]
    known = places[:of][has_past > 0]
    cache = narrow_cache(make, known, (of + len(moments) + 2, heads, size, state), *kept)
    where = (places[:of], starts, has_past, make.ints(taken))  # type: ignore[arg-type]
    lengths = make.ints([n + 50 * (i % 2) for i, n in enumerate(counts)])
    yield Case(
        f"{counts[0]} ×{len(counts)}, {label}",
        "narrow_scan_prefill",
        (scan_inputs(make, shape, tokens), params, cache, *where, lengths),
        (2,),
        moved_bytes=tokens * heads * size * 3 * item,
        operations=tokens * heads * (4 * state * size + 64 * (2 * state + 2 * size)),
    )


def narrow_cache(
    make: Maker, known: Tensor, shape: tuple[int, ...], dtype: torch.dtype, stochastic: bool
) -> NarrowCache:
    """Slots of which those in `known` have content, and all others NaN (int8: in their scales)."""
    if dtype == torch.bfloat16:
        ssm = make.nan(*shape, dtype=dtype)
        ssm[known] = make.noise(len(known), *shape[1:], dtype=dtype)
        return NarrowCache(ssm, ssm, None, stochastic)
    numbers = make.noise(*shape, dtype=torch.float32) * 30
    scales = make.nan(*shape[:2], dtype=torch.float32)
    scales[known] = make.noise(len(known), shape[1], dtype=torch.float32).exp() / 30
    return NarrowCache(numbers, numbers.clamp(-127, 127).to(dtype), scales, stochastic)


def _moments(counts: Sequence[int]) -> list[tuple[int, int]]:
    """A request and so many of its tokens: the first, the last, and the borders of chunks."""
    borders = (1, 2, 15, 16, 17, 64, 65, 256, 257)
    ends = [{n, n - 1, n // 2, *(b for b in borders if b < n)} - {-1, 0} for n in counts]
    return [(i, end) for i, wanted in enumerate(ends) for end in sorted(wanted)]


def _parts(
    make: Maker,
    counts: Sequence[int],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    moments: Sequence[tuple[int, int]] = (),
) -> tuple[Tensor, ...]:
    """Starts, has_past (every second request), slots' memory with NaN where nobody was, slots, and
    photographs, if there are moments to be taken."""
    requests = len(counts)
    starts = torch.tensor([0, *counts], device=make.device).cumsum(0)
    has_past = make.ints([i % 2 for i in range(requests)])
    places = make.shuffled(requests + len(moments) + 1)
    slots, free = places[:requests], places[requests:].tolist()
    cache = make.nan(requests + len(moments) + 2, *shape, dtype=dtype)
    cache[slots[has_past > 0]] = make.noise(int(has_past.sum()), *shape, dtype=dtype)
    rows = [[*moment, free.pop()] for moment in moments]
    taken = [make.ints(rows)] if moments else []  # type: ignore[arg-type]
    return starts, has_past, cache, slots, *taken
