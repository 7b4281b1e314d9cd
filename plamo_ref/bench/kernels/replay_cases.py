"""Arguments for states that are written every k tokens.

Invariant: as in cases.py: what must not be read is NaN; here also the entries of a ring that a
token has not reached, and those that a prompt has left empty.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from plamo_ref.bench.kernels.parts import Case, Maker, Shape
from plamo_ref.bench.kernels.state_cases import narrow_cache, scan_inputs, scan_params
from plamo_ref.kernels.ssm.narrow import ReplayCache

# As NARROW, and plain: float32 is stored as it is.
Kept = tuple[torch.dtype, bool]


def replay_cases(
    make: Maker, shape: Shape, requests: int, tokens: int, kept: Kept, counts: Sequence[int] = ()
) -> Iterator[Case]:
    """A step of requests at all places of a ring of `tokens` entries in turn, and, of prompts'
    parts of so many tokens, what comes before them."""
    dtype, stochastic = kept
    heads, size, state = shape.mamba_heads, shape.size, shape.state
    label = str(dtype).removeprefix("torch.") + ", by chance" * stochastic + f", k {tokens}"
    params = scan_params(make, heads)
    lengths = [1 + i % tokens + tokens * (1 + i) for i in range(requests)]
    slots = make.shuffled(requests + 1)[:requests]
    cache = replay_cache(make, shape, slots, [n - 1 for n in lengths], tokens, kept)
    arguments = (scan_inputs(make, shape, requests), params, cache, slots, make.ints(lengths))
    item, entry = make.dtype.itemsize, ring_bytes(shape, make.dtype.itemsize)
    moved = requests * heads * size * (state * dtype.itemsize + 3 * item)
    for at in (n - 1 for n in lengths):
        moved += (at % tokens + 1) * entry
        moved += heads * size * state * dtype.itemsize * (at % tokens == tokens - 1)
    yield Case(f"{requests}, {label}", "replay_state_update", arguments, (2,), moved_bytes=moved)
    if not counts:
        return
    places, of = make.shuffled(len(counts) + 2), len(counts)
    slots, before = places[:of], [i + tokens for i in range(of)]
    has_past = [1 - (i == 1) for i in range(of)]
    before = [n * past for n, past in zip(before, has_past, strict=True)]
    cache = replay_cache(make, shape, slots, before, tokens, kept)
    starts = torch.tensor([0, *counts], device=make.device).cumsum(0)
    lengths = [n + past for n, past in zip(counts, before, strict=True)]
    taken = make.ints([[0, 1, int(places[of])]])  # type: ignore[list-item]
    where = (slots, starts, make.ints(has_past), taken, make.ints(lengths))
    yield Case(f"×{of}, {label}", "replay_flush", (params, cache, *where), (1,))


def ring_bytes(shape: Shape, item: int) -> int:
    """Of one token's entry."""
    return (shape.mamba_heads * shape.size + shape.state) * item + shape.mamba_heads * max(4, item)


def replay_cache(
    make: Maker, shape: Shape, slots: Tensor, taken: Sequence[int], tokens: int, kept: Kept
) -> ReplayCache:
    """States of `slots` [R] that have taken in so many tokens, with the ring's entries of the last
    of them; the first of a ring is often one that a prompt has left empty."""
    heads, size, state = shape.mamba_heads, shape.size, shape.state
    places = (len(slots) + 3, heads, size, state)
    if kept == (torch.float32, False) or kept == (torch.bfloat16, False):
        ssm, scales = make.nan(*places, dtype=kept[0]), None
        ssm[slots] = make.noise(len(slots), *places[1:], dtype=kept[0])
    else:
        narrow = narrow_cache(make, slots, places, *kept)
        ssm, scales = narrow.ssm, narrow.scales
    wide = torch.promote_types(make.dtype, torch.float32)
    u = make.noise(places[0], heads, tokens, size)
    B = make.noise(places[0], tokens, state)
    delta = make.noise(places[0], heads, tokens, dtype=wide).exp()
    for row, (slot, count) in enumerate(zip(slots.tolist(), taken, strict=True)):
        reached = count % tokens
        if row % 2 == 0 and reached > 1:  # a prompt ended behind the first
            delta[slot, :, 0] = 0
            u[slot, :, 0], B[slot, 0] = math.nan, math.nan
        for ring in (u[slot], delta[slot], B[slot][None]):
            ring[:, reached:] = math.nan
    return ReplayCache(ssm, ssm, scales, kept[1], u, B, delta)
