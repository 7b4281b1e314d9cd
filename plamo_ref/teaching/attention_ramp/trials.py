"""Inputs that no reader has seen, what lesson 10's first five kernels make of them, and mistakes.

Invariant: sizes are odd where a kernel allows it, numbers have no symmetry, memory that nobody may
read is NaN; what is right comes from slow float64 code, which no kernel shares. Each mistake is
what the formula gives when that mistake is made in it.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from plamo_ref.config import QK_NORM_EPS
from plamo_ref.kernels.norm.twin import rms_norm
from plamo_ref.kernels.rope import twin as rope
from plamo_ref.teaching.kernel_checks import Trial, unwritten

Mistakes = Mapping[str, Callable[[Trial], Tensor]]


def randoms(seed: int) -> Callable[..., Tensor]:
    """Normal numbers of one seed, a little off 0."""
    draw = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=draw) + 0.25


# --- 1: a copy ------------------------------------------------------------------------------------


def copies() -> list[Trial]:
    """Lengths that are no multiple of 8, and one that is."""
    found = []
    for n in (13, 61, 64, 5):
        x = randoms(n)(n)
        found.append(
            Trial({"x": x, "out": unwritten(n)}, {"out": x}, {"copy_kernel": math.ceil(n / 8)})
        )
    return found


COPY_MISTAKES: Mistakes = {
    "every program copies the first 8 places: add `tl.program_id(0) * BLOCK`": lambda t: t.given[
        "x"
    ][torch.arange(len(t.given["x"])) % 8],
}

# --- 2: RMS norm ----------------------------------------------------------------------------------


def norms() -> list[Trial]:
    """Rows of odd lengths."""
    found = []
    for rows, width in ((3, 10), (2, 13), (2, 33)):
        random = randoms(width)
        x, gain = random(rows, width) * 3, random(width)
        x[-1] *= 3e-4  # so small that ε shows
        out = rms_norm(x.double(), gain.double(), 1e-6).float()
        given = {"x": x, "gain": gain, "out": unwritten(rows, width)}
        found.append(Trial(given, {"out": out}, {"norm_kernel": rows}))
    return found


def _norm_with(
    t: Trial, divisor: Callable[[int], float], gain: bool = True, eps: float = 1e-6
) -> Tensor:
    x = t.given["x"].double()
    scale = (x.square().sum(-1, keepdim=True) / divisor(x.shape[-1]) + eps).rsqrt()
    return (x * scale * (t.given["gain"] if gain else 1)).float()


NORM_MISTAKES: Mistakes = {
    "the mean is over the D numbers of the row, not over the BLOCK places of the tile": (
        lambda t: _norm_with(t, lambda d: 1 << (d - 1).bit_length())
    ),
    "the mean of the squares, not their sum": lambda t: _norm_with(t, lambda _: 1.0),
    "the gain is missing": lambda t: _norm_with(t, float, gain=False),
    "ε is missing: it is added to the mean, in front of the root": lambda t: _norm_with(
        t, float, eps=0.0
    ),
    "the mean is subtracted: that is LayerNorm; RMS norm divides by the root of mean x²": (
        lambda t: torch.nn.functional.layer_norm(
            t.given["x"], t.given["gain"].shape, t.given["gain"], None, 1e-6
        )
    ),
}

# --- 3: QK-norm and RoPE --------------------------------------------------------------------------


def angles(tokens: int, size: int) -> tuple[Tensor, Tensor]:
    """cos and sin of positions 3, 10, 17 …: [T, P/2] each."""
    positions = torch.arange(tokens) * 7 + 3
    cos, sin = rope.rope_tables(positions, size, 10_000.0, torch.float32)[:, :, 0]
    return cos.contiguous(), sin.contiguous()


def rotations() -> list[Trial]:
    """More heads than tokens, and fewer."""
    found = []
    for tokens, heads, size in ((2, 3, 8), (3, 2, 16), (1, 3, 32)):
        random = randoms(heads)
        x, gain = random(tokens, heads, size) * 2, random(heads, size)
        x[-1, -1] *= 5e-4  # so small that ε shows
        cos, sin = angles(tokens, size)
        given = {"x": x, "gain": gain, "cos": cos, "sin": sin}
        out = _rotated(*(v.double() for v in given.values())).float()
        whole = given | {"out": unwritten(tokens, heads, size)}
        found.append(Trial(whole, {"out": out}, {"rotate_kernel": tokens * heads}))
    return found


def _rotated(
    x: Tensor, gain: Tensor, cos: Tensor, sin: Tensor, *, eps: float = QK_NORM_EPS
) -> Tensor:
    return rope.rotate(rms_norm(x, gain, eps), torch.stack((cos, sin))[:, :, None])


def _rotation_of(t: Trial) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(t.given[k] for k in ("x", "gain", "cos", "sin"))


def _neighbours(t: Trial) -> Tensor:
    """The pair (2 i, 2 i + 1), which other models rotate."""
    x, gain, cos, sin = _rotation_of(t)
    x = rms_norm(x, gain, QK_NORM_EPS)
    even, odd = x[..., ::2], x[..., 1::2]
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)


def _gain_last(t: Trial) -> Tensor:
    x, gain, cos, sin = _rotation_of(t)
    return _rotated(x, torch.ones_like(gain), cos, sin) * gain


def _backwards(t: Trial) -> Tensor:
    x, gain, cos, sin = _rotation_of(t)
    return _rotated(x, gain, cos, -sin)


def _halves(t: Trial) -> Tensor:
    x, gain, cos, sin = _rotation_of(t)
    scaled = rms_norm(x, gain, QK_NORM_EPS / 2) / math.sqrt(2)  # √(2 mean + ε) below
    return rope.rotate(scaled, torch.stack((cos, sin))[:, :, None])


ROTATE_MISTAKES: Mistakes = {
    "the pair is (i, i + P/2): this rotates neighbours": _neighbours,
    "norm *and gain* come first, the rotation last": _gain_last,
    "the rotation goes the other way: x1 cos − x2 sin, x2 cos + x1 sin": _backwards,
    "the mean is over all P numbers of the head, not over P/2": _halves,
    "each head has a gain of its own, from head · P on": lambda t: _rotated(
        *(x[:1].expand_as(x) if i == 1 else x for i, x in enumerate(_rotation_of(t)))
    ),
    "each token has angles of its own, from token · P/2 on": lambda t: _rotated(
        *(x[:1].expand_as(x) if i > 1 else x for i, x in enumerate(_rotation_of(t)))
    ),
    "ε is missing in the norm": lambda t: _rotated(*_rotation_of(t), eps=0.0),
    "the rotation is missing": lambda t: rms_norm(t.given["x"], t.given["gain"], QK_NORM_EPS),
    "the norm is missing": lambda t: rope.rotate(
        t.given["x"], torch.stack((t.given["cos"], t.given["sin"]))[:, :, None]
    ),
}

# --- 4: the write ---------------------------------------------------------------------------------


def writes() -> list[Trial]:
    """Rows of 12 and 21 numbers; one token in each is padding and has no slot."""
    found = []
    for tokens, shape, groups, size in ((5, (8, 2), 3, 4), (7, (3, 5), 3, 7)):
        draw = torch.Generator().manual_seed(tokens)
        new = randoms(tokens)(tokens, groups, size)
        slots = torch.randperm(shape[0] * shape[1], generator=draw)[:tokens]
        slots[2] = -1
        rows = torch.full((shape[0] * shape[1], groups, size), torch.nan)
        rows[slots[slots >= 0]] = new[slots >= 0]
        given = {"new": new, "cache": unwritten(*shape, groups, size), "slots": slots}
        expected = {"cache": rows.view(*shape, groups, size)}
        found.append(Trial(given, expected, {"write_kernel": tokens - 1}))
    return found


# --- 5: one request -------------------------------------------------------------------------------


def requests() -> list[Trial]:
    """All scores far below 0, then far above: without a maximum, 2 to their power is 0 or ∞."""
    found = []
    cases = ((2, 37, 8, -110), (3, 50, 16, 110), (1, 16, 4, 0), (2, 1, 8, 0))
    for heads, keys, size, common in cases:
        random = randoms(keys)
        q, k, v = 2 * random(heads, size), random(keys, size), random(keys, size)
        q[:, 0], k[:, 0] = common, math.sqrt(size)
        given = {"q": q, "keys": k, "values": v, "out": unwritten(heads, size)}
        out = _attended(q.double(), k.double(), v.double()).float()
        found.append(Trial(given, {"out": out}, {"attend_kernel": heads}))
    return found


def _attended(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    scores = q @ k.T * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    return scores.softmax(-1) @ v


def _wrongly(scale: Callable[[int], float]) -> Callable[[Trial], Tensor]:
    def attended(t: Trial) -> Tensor:
        q, k, v = (t.given[name].double() for name in ("q", "keys", "values"))
        return _attended(q, k, v, scale(q.shape[-1])).float()

    return attended


def _in_tiles(
    t: Trial, acc_shrinks: bool = True, total_shrinks: bool = True, divided: bool = True
) -> Tensor:
    """Tile by tile, with or without what a new maximum asks for."""
    q, k, v = (t.given[name].double() for name in ("q", "keys", "values"))
    scores = q @ k.T / math.sqrt(q.shape[-1])
    m = torch.full((len(q), 1), -torch.inf, dtype=torch.float64)
    total, acc = torch.zeros_like(m), torch.zeros_like(q)
    for begin in range(0, len(k), 16):
        tile = scores[:, begin : begin + 16]
        m_new = torch.maximum(m, tile.amax(1, keepdim=True))
        old, weights = (m - m_new).exp(), (tile - m_new).exp()
        total = total * (old if total_shrinks else 1) + weights.sum(1, keepdim=True)
        acc = acc * (old if acc_shrinks else 1) + weights @ v[begin : begin + 16]
        m = m_new
    return (acc / total if divided else acc).float()


def _last_tile(t: Trial) -> Tensor:
    """Nothing is carried from a tile to the next."""
    q, k, v = (t.given[name].double() for name in ("q", "keys", "values"))
    begin = (len(k) - 1) // 16 * 16
    return _attended(q, k[begin:], v[begin:]).float()


def _absent_keys_count(t: Trial) -> Tensor:
    q, k, v = (t.given[name].double() for name in ("q", "keys", "values"))
    absent = (0, 0, 0, -len(k) % 16)
    pad = torch.nn.functional.pad
    return _attended(q, pad(k, absent), pad(v, absent)).float()


ATTEND_MISTAKES: Mistakes = {
    "nobody divides acc by total": lambda t: _in_tiles(t, divided=False),
    "the scores are not divided by √P": _wrongly(lambda size: 1.0),
    "log₂e is missing: exp2 is 2ˣ, and softmax wants eˣ": _wrongly(
        lambda size: math.log(2) / math.sqrt(size)
    ),
    "scores are divided by P, not by its root": _wrongly(lambda size: 1 / size),
    "only the last tile is in the result: total, acc and m (m = m_new) go on": _last_tile,
    "a new maximum shrinks acc as well: acc · old": lambda t: _in_tiles(t, acc_shrinks=False),
    "a new maximum shrinks total as well: total · old": lambda t: _in_tiles(t, total_shrinks=False),
    "sums of different maxima are added: both shrink by old, 2 ** (m − m_new)": lambda t: _in_tiles(
        t, acc_shrinks=False, total_shrinks=False
    ),
    "keys that are not there have the score 0 and so a weight: −inf gives them none": (
        _absent_keys_count
    ),
}
