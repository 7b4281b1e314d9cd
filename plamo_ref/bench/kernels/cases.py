"""Arguments for every operation: odd shapes for truth, the published models' shapes for speed.

Invariant: whatever an operation must not read is NaN: unused blocks, the rest of a last block,
slots of others, the slot of a request without a past. All numbers come from one seed.
"""

import math
from collections.abc import Iterator, Sequence

import torch

from plamo_ref.bench.kernels.dense_cases import (
    FEW,
    linear_cases,
    norm_cases,
    quantized_cases,
    selection_cases,
)
from plamo_ref.bench.kernels.parts import SMALL, Case, Maker, Shape
from plamo_ref.bench.kernels.replay_cases import replay_cases
from plamo_ref.bench.kernels.state_cases import NARROW, conv_cases, narrow_cases, scan_cases
from plamo_ref.kernels.rope.twin import rope_tables
from plamo_ref.kernels.sample.twin import kept_weights
from plamo_ref.quantization.weight import FP8


def qk_case(
    make: Maker, shape: Shape, tokens: int, parts: int = 0, kept: torch.dtype | None = None
) -> Case:
    """kept: the dtype of the cache, if it is another one."""
    heads, groups, size = shape.heads, shape.kv_heads, shape.size
    blocks = tokens // shape.block_size + 2
    positions = make.ints([(7919 * t) % 100_003 for t in range(tokens)])
    width = (heads + 2 * groups) * size
    arguments = (
        # Rows further apart than they are long.
        make.parts(parts, tokens, width) if parts else make.noise(tokens, width + 8)[:, :width],
        make.noise(heads, size),
        make.noise(groups, size),
        rope_tables(positions, size, 10000.0, make.dtype),
        make.nan(blocks, shape.block_size, groups, size, dtype=kept),
        make.nan(blocks, shape.block_size, groups, size, dtype=kept),
        make.shuffled(blocks * shape.block_size - 1)[:tokens],
    )
    moved = 2 * tokens * width * make.dtype.itemsize
    label = f"{tokens}, {parts} parts" if parts else f"{tokens}"
    label += ", fp8" * (kept is not None)
    return Case(label, "qk_norm_rope_write", arguments, (4, 5), moved_bytes=moved)


def rope_case(make: Maker, shape: Shape, tokens: int) -> Case:
    """Positions up to ten million, the longest that a checkpoint names."""
    positions = make.ints([(7919 * t * t + 4097) % 10_485_760 for t in range(tokens)])
    return Case(f"{tokens}", "rope_tables", (positions, shape.size, 1e6, make.dtype))


def paged_case(
    make: Maker,
    shape: Shape,
    shares: Sequence[tuple[int, int]],
    window: int | None,
    kept: torch.dtype | None = None,
) -> Case:
    """Shares: tokens of each request computed before, and in this step; kept: as in `qk_case`."""
    size, groups, block_size = shape.size, shape.kv_heads, shape.block_size
    firsts = [0 if window is None else max(0, past - window) // block_size for past, _ in shares]
    lengths = [past + new for past, new in shares]
    spans = [math.ceil(n / block_size) - f for n, f in zip(lengths, firsts, strict=True)]
    places = make.shuffled(sum(spans)).tolist()
    rows = [[places.pop() for _ in range(span)] for span in spans]
    wide = max(spans) + 1
    table = make.ints([[*row, *[0] * (wide - len(row))] for row in rows])  # type: ignore[misc]
    places_of = (sum(spans) + 1, block_size, groups, size)
    caches = [make.noise(*places_of, dtype=kept) for _ in range(2)]
    for cache in caches:
        cache[0] = math.nan
        for row, length, (past, _) in zip(rows, lengths, shares, strict=True):
            if row and length % block_size:
                cache[row[-1], length % block_size :] = math.nan
            if row and window is not None:  # what the first query no longer sees
                cache[row[0], : max(0, past - window) % block_size] = math.nan
    counts = [new for _, new in shares]
    q = make.noise(sum(counts), shape.heads, size)
    common = (q, *caches, table, make.ints(firsts), make.ints(lengths))
    label = f"{'+'.join(map(str, shares[0]))} ×{len(shares)}, W {window}" + ", fp8" * bool(kept)
    past_seen = [min(p, window) if window is not None else p for p, _ in shares]
    keys = sum(past_seen) + sum(counts)
    moved = 2 * sum(counts) * shape.heads * size * make.dtype.itemsize
    moved += 2 * keys * groups * size * caches[0].element_size()
    if all(new == 1 for new in counts):
        return Case(label, "paged_decode", (*common, window), moved_bytes=moved)
    pairs = sum(_pairs(past, new, window) for past, new in shares)
    starts = torch.tensor([0, *counts], device=make.device).cumsum(0)
    return Case(
        label,
        "paged_prefill",
        (*common, starts, window),
        moved_bytes=moved,
        operations=4 * pairs * shape.heads * size,
    )


def _pairs(past: int, new: int, window: int | None) -> int:
    """Of a query and a key that it sees."""
    seen = (position + 1 for position in range(past, past + new))
    return sum(seen) if window is None else sum(min(n, window + 1) for n in seen)


def argmax_case(make: Maker, size: int, rows: int) -> Case:
    """Logits of few different values, so that equals are everywhere."""
    logits = make.noise(rows, size + 8)[:, :size].mul(2).round()
    moved = rows * size * make.dtype.itemsize
    return Case(f"{rows} of {size}", "argmax", (logits,), moved_bytes=moved)


def sample_case(make: Maker, size: int, rows: int) -> Case:
    """Rows of all kinds. Each row's u is the middle of the share of some likely token, so that a
    rounding cannot choose another."""
    logits = 3 * make.noise(rows, size + 3)[:, :size]
    logits[::4] = logits[::4].round()  # many equals
    logits[1::5, :: max(2, size // 7)] = -math.inf
    kinds = (
        (0.0, size, 1.0, 0.0),
        (1.0, size, 1.0, 0.0),
        (0.7, min(size, 50), 1.0, 0.0),
        (1.3, size, 0.9, 0.0),
        (1.0, size, 1.0, 0.02),
        (0.9, min(size, 5), 0.6, 0.1),
        (2.0, 1, 1.0, 0.0),
    )
    table = [[*kinds[row % len(kinds)], 0.0] for row in range(rows)]
    knobs = torch.tensor(table, dtype=torch.float64, device=make.device)
    weights = kept_weights(logits.double(), knobs)
    pick = weights.argsort(dim=-1, descending=True)[:, : min(4, size)]
    pick = pick.gather(-1, torch.arange(rows, device=make.device)[:, None] % pick.shape[1])
    pick = torch.where(weights.gather(-1, pick) > 0, pick, weights.argmax(-1, keepdim=True))
    middle = weights.cumsum(-1).gather(-1, pick) - weights.gather(-1, pick) / 2
    knobs[:, -1:] = middle / weights.sum(-1, keepdim=True)
    moved = rows * size * make.dtype.itemsize
    return Case(f"{rows} of {size}", "sample", (logits, knobs), moved_bytes=moved)


def small_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Every operation at odd shapes, edges of the window, empty and one-token parts."""
    for index, shape in enumerate(SMALL):
        make, window = Maker(device, dtype, seed=index), shape.window
        cases = [
            *norm_cases(make, shape, 3),
            *linear_cases(make, shape, 1 if index else 19),
            *quantized_cases(make, shape, 1 if index else 19, (FEW[index],)),
            *selection_cases(make, shape, 131 if index == 0 else 3),
            rope_case(make, shape, 3),
            qk_case(make, shape, 3),
            qk_case(make, shape, 5, parts=2),
            qk_case(make, shape, 5, kept=FP8),
            paged_case(make, shape, [(window, 1), (3, 1)], window, FP8),
            paged_case(make, shape, [(window + 1, 2), (3, 17)], None, FP8),
            *conv_cases(make, shape, 2, (1, 2, 33, 3)),
            *scan_cases(make, shape, 2, (1, 0, 65 if index == 0 else 18)),
        ]
        cases += [*conv_cases(make, shape, 1, (1, 2, 6, 3), photographs=True)][1:]
        few = (1, 0, 65 if index == 0 else 18)
        cases += [*scan_cases(make, shape, 1, few, photographs=True)][1:]
        edges = [(max(0, window + extra - 1), 1) for extra in (-1, 0, 1, 2)]
        chunks = [(0, 1), (window, 1), (window + 1, 2), (4, 0), (3, 17)]
        cases += narrow_cases(make, shape, 2, few, NARROW[index])
        cases += replay_cases(make, shape, 4, 4, (torch.float32, False), (1, 3, 2, 1))
        cases += replay_cases(make, shape, 3, 3 + index, NARROW[index], (2, 1, 5))
        for limit in (window, None):
            cases += [
                paged_case(make, shape, edges[:2] if index > 1 else edges, limit),
                paged_case(make, shape, chunks[1:] if index > 1 else chunks, limit),
            ]
        cases.append(argmax_case(make, (1000, 1, 257, 4097, 9001)[index], 3))
        cases.append(sample_case(make, (1000, 1, 257, 4096, 5001)[index], 14))
        for case in cases:
            name = f"{shape.name}: {case.operation} {case.name}"
            yield Case(name, case.operation, case.arguments, case.written)


def model_cases(device: torch.device, dtype: torch.dtype, shape: Shape) -> Iterator[Case]:
    """Every operation at one published model's shapes."""
    make = Maker(device, dtype)
    for tokens in (1, 128, 2048):
        for cases in (norm_cases, linear_cases, quantized_cases):
            yield from cases(make, shape, tokens)
        yield rope_case(make, shape, tokens)
        yield qk_case(make, shape, tokens)
    for tokens in (16, 32, 300):  # other kernels and tiles of these
        yield from quantized_cases(make, shape, tokens, ("int8", "int4"))
    for tokens in (1, 32, 64, 128, 256, 2048):
        yield from selection_cases(make, shape, tokens)
    for context, requests in ((300, 1), (2047, 1), (300, 128), (2100, 32)):
        yield paged_case(make, shape, [(context, 1)] * requests, shape.window)
    yield paged_case(make, shape, [(9000, 1)] * 2, None)
    for chunks in ([(0, 2048)], [(4000, 2048)], [(0, 300), (100, 77), (2500, 1000)]):
        yield paged_case(make, shape, chunks, shape.window)
    yield paged_case(make, shape, [(1000, 1048)], None)
    yield qk_case(make, shape, 128, kept=FP8)
    for chunks in ([(2100, 1)] * 32, [(300, 1)] * 128, [(4000, 2048)]):
        yield paged_case(make, shape, chunks, shape.window, FP8)
    shares = ((1, (8192,)), (32, (100, 333, 700, 1)), (128, (64,) * 32), (8, (16,) * 8))
    for requests, counts in shares:
        yield from conv_cases(make, shape, requests, counts)
        yield from scan_cases(make, shape, requests, counts)
    yield from scan_cases(make, shape, 128, (700, 1, 300), torch.bfloat16)
    for kept in NARROW:
        yield from narrow_cases(make, shape, 2, (), kept)
        yield from narrow_cases(make, shape, 128, (700, 1, 300), kept)
        yield from narrow_cases(make, shape, 256, (), kept)
    for tokens, requests in ((4, 256), (8, 32), (8, 128), (8, 256), (16, 256)):
        for its in ((torch.float32, False), (torch.bfloat16, False), (FP8, True)):
            yield from replay_cases(make, shape, requests, tokens, its)
    for its in ((torch.float32, False), *NARROW):
        yield from replay_cases(make, shape, 2, 8, its, (700, 1, 300, 5))
    for counts in ((8192,), (100, 333, 700, 1), (5,) * 8):
        yield from [*conv_cases(make, shape, 1, counts, photographs=True)][1:]
        yield from [*scan_cases(make, shape, 1, counts, photographs=True)][1:]
    for rows in (1, 32, 256):
        yield argmax_case(make, shape.vocabulary, rows)
        yield sample_case(make, shape.vocabulary, rows)
