"""Exercises 6 and 7 of lesson 10: decode over keys in blocks, with a window, whole and in parts.

Invariant: as of trials.py; memory in front of the window, behind the last token and of nobody is
NaN, so that whoever loads it has a result that shows it.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from plamo_ref.kernels.attention.twin import paged_decode
from plamo_ref.teaching.attention_ramp import trials
from plamo_ref.teaching.attention_ramp.trials import Mistakes, randoms
from plamo_ref.teaching.kernel_checks import Trial, unwritten

_CASES = ((7, 2, 3, 20), (16, 1, 5, 1000), (5, 2, 1, 0))  # SIZE, G, heads of a group, window
_LENGTHS = (37, 1, 64)  # an interpreted program takes 10 ms: few requests, no two alike


def decodes() -> list[Trial]:
    """Blocks of odd sizes anywhere in memory; those in front of the window are NaN."""
    return [_decode(*case) for case in _CASES]


def split_decodes() -> list[Trial]:
    """The first two with a tensor for partial results: 4 parts of a tile, then 2 of two tiles."""
    found = []
    for case, parts in zip(_CASES, (4, 2), strict=False):
        t = _decode(*case)
        rows, heads, size = t.given["q"].shape
        given = {k: v for k, v in t.given.items() if k != "out"}
        given |= {"parts": unwritten(rows, heads, parts, size + 2), "out": t.given["out"]}
        programs = {"split_kernel": t.programs["decode_kernel"] * parts, "join_kernel": 1}
        programs["join_kernel"] = rows * heads
        found.append(Trial(given, t.expected, programs, ("parts",), t.read_once))
    return found


def _decode(block_size: int, groups: int, per_group: int, window: int) -> Trial:
    size, rows = 16, len(_LENGTHS)
    random = randoms(block_size)
    draw = torch.Generator().manual_seed(block_size)
    width = math.ceil(max(_LENGTHS) / block_size)
    table = (1 + torch.randperm(rows * width, generator=draw)).view(rows, width)
    keys, values = torch.full((2, rows * width + 1, block_size, groups, size), torch.nan)
    for row, length in enumerate(_LENGTHS):
        for s in range(max(0, length - 1 - window), length):
            place = table[row, s // block_size], s % block_size
            keys[place], values[place] = 3 * random(groups, size), random(groups, size)
        table[row, math.ceil(length / block_size) :] = 0  # nobody's block
    q, lens = 3 * random(rows, groups * per_group, size), torch.tensor(_LENGTHS)
    if window > max(_LENGTHS):  # scores beyond what 2 ** score can hold: the maximum must go
        q[:, :, 0], keys[..., 0] = 110, keys[..., 0] * 0 + math.sqrt(size)
    given = {"q": q, "keys": keys, "values": values, "table": table, "lens": lens}
    given |= {"window": window, "out": unwritten(*q.shape)}
    programs = {"decode_kernel": rows * groups}
    plain = Trial(given, {}, programs, read_once=("keys", "values"))
    return Trial(given, {"out": _decoded(plain)}, programs, read_once=plain.read_once)


def _decoded(t: Trial, less: int = 0, shuffled: bool = False) -> Tensor:
    """The twin in float64; `less`: a window that is so much smaller."""
    q, keys, values, table, lens, window = (
        t.given[k] for k in ("q", "keys", "values", "table", "lens", "window")
    )
    q, keys, values = (x.double().nan_to_num(0.0) for x in (q, keys, values))
    if shuffled:
        heads = keys.shape[2]
        q = q.unflatten(1, (-1, heads)).transpose(1, 2).flatten(1, 2)
    out = paged_decode(q, keys, values, table, torch.zeros_like(lens), lens, window - less)
    if shuffled:
        out = out.unflatten(1, (heads, -1)).transpose(1, 2).flatten(1, 2)
    return out.float()


DECODE_MISTAKES: Mistakes = {
    "W keys are seen, and it should be W + 1: the token's own and W earlier ones": (
        lambda t: _decoded(t, less=1)
    ),
    "query head j belongs to KV head j // HEADS: neighbours share one, not every G-th": (
        lambda t: _decoded(t, shuffled=True)
    ),
}


def _joined(t: Trial, acc_weighted: bool, total_weighted: bool) -> Tensor:
    """Parts of whole tiles, and a join with weights that are forgotten in one place or both."""
    q, table, lens, window = (t.given[k] for k in ("q", "table", "lens", "window"))
    (rows, heads, size), parts = q.shape, t.given["parts"].shape[2]
    out = torch.zeros(rows, heads, size, dtype=torch.float64)
    for row, length in enumerate(lens.tolist()):
        low = max(length - 1 - window, 0)
        share = math.ceil(math.ceil((length - low) / 16) / parts) * 16
        s = torch.arange(low, length)
        block_size, groups = t.given["keys"].shape[1:3]
        place = table[row, s // block_size], s % block_size
        k, v = (t.given[name][place].double() for name in ("keys", "values"))  # [S, G, P]
        k, v = (x.repeat_interleave(heads // groups, 1).transpose(0, 1) for x in (k, v))
        scores = (q[row].double()[:, None] @ k.transpose(1, 2)).squeeze(1) / math.sqrt(size)
        m = torch.stack([tile.amax(1) for tile in scores.split(share, 1)], 1)  # [H, parts]
        weight = (m - m.amax(1, keepdim=True)).exp()
        acc, total = torch.zeros(heads, size).double(), torch.zeros(heads, 1).double()
        for part, (tile, values) in enumerate(
            zip(scores.split(share, 1), v.split(share, 1), strict=True)
        ):
            w, own = (tile - m[:, part, None]).exp(), weight[:, part, None]
            acc += (w[:, None] @ values).squeeze(1) * (own if acc_weighted else 1)
            total += w.sum(1, keepdim=True) * (own if total_weighted else 1)
        out[row] = acc / total
    return out.float()


SPLIT_MISTAKES: Mistakes = {
    "parts with different maxima are added: each counts 2 ** (m − largest m)": lambda t: _joined(
        t, acc_weighted=False, total_weighted=False
    ),
    "total must be weighted exactly as acc is": lambda t: _joined(
        t, acc_weighted=True, total_weighted=False
    ),
    "acc must be weighted exactly as total is": lambda t: _joined(
        t, acc_weighted=False, total_weighted=True
    ),
    **DECODE_MISTAKES,
}

# Launcher → its trials and its known mistakes, of all seven exercises.
BY_LAUNCHER: dict[str, tuple[Callable[[], list[Trial]], Mistakes]] = {
    "copy": (trials.copies, trials.COPY_MISTAKES),
    "norm": (trials.norms, trials.NORM_MISTAKES),
    "rotate": (trials.rotations, trials.ROTATE_MISTAKES),
    "write": (trials.writes, {}),
    "attend": (trials.requests, trials.ATTEND_MISTAKES),
    "decode": (decodes, DECODE_MISTAKES),
    "split_decode": (split_decodes, SPLIT_MISTAKES),
}
