"""Who touches what, drawn from what the lesson's kernels did; and kernels lent to go on.

Invariant: a picture is recorded in the interpreter and not invented; a kernel that the reader has
written is never replaced.
"""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from plamo_ref.teaching import lending
from plamo_ref.teaching.attention_ramp import kernels
from plamo_ref.teaching.attention_ramp.trials import angles
from plamo_ref.teaching.figures import show
from plamo_ref.teaching.kernel_checks import unwritten
from plamo_ref.teaching.launches import is_interpreted
from plamo_ref.teaching.watching import Access, Kind, Program, Seen, touch_map, watch

# Launcher → the kernels that it needs, in the order of the exercises.
RAMP: dict[str, tuple[str, ...]] = {
    "copy": ("copy_kernel",),
    "norm": ("norm_kernel",),
    "rotate": ("rotate_kernel",),
    "write": ("write_kernel",),
    "attend": ("attend_kernel",),
    "decode": ("walk", "decode_kernel"),
    "split_decode": ("split_kernel", "join_kernel"),
}


@dataclass(frozen=True)
class Picture:
    """What is launched for a picture, and what of it is drawn."""

    given: dict[str, Any]
    kind: Kind
    tensors: tuple[str, ...]
    alt: str
    number: Callable[[Program], int] = itemgetter(0)
    label: Callable[[Program], str] | None = None


def lend(namespace: MutableMapping[str, Any], *names: str, anyway: bool = False) -> None:
    """Our launchers with their kernels, as `teaching.lending` lends."""
    for name in names:
        lending.lend(namespace, kernels, name, *RAMP[name], anyway=anyway)


def draw(name: str, launcher: Callable[..., Any] | None = None) -> None:
    """Show who touches what in a small launch, ours by default."""
    if not is_interpreted(kernels.copy_kernel):
        print("Programs are watched in the interpreter only: start with TRITON_INTERPRET=1.")
        return
    show(*picture(name, launcher))


def picture(name: str, launcher: Callable[..., Any] | None = None) -> tuple[Figure, str]:
    """The figure of `draw`, with its alt text."""
    wanted = _PICTURES[name]()
    tensors = {k: v for k, v in wanted.given.items() if isinstance(v, Tensor)}
    with watch(others=False, **tensors) as seen:
        (launcher or getattr(kernels, name))(*wanted.given.values())
    if name == "attend":
        seen = _tiles_of_one(seen)
    shown = Seen({n: seen.tensors[n] for n in wanted.tensors}, seen.accesses)
    fig = touch_map(shown, wanted.kind, *wanted.tensors, number=wanted.number, label=wanted.label)
    return fig, wanted.alt


def _tiles_of_one(seen: Seen) -> Seen:
    """The loads of program 0, numbered by the turn of its loop."""
    found = []
    for name in ("keys", "values"):
        loads = seen.only((0,)).of(name, "load")
        found += [Access((i, 0, 0), "load", name, a.elements) for i, a in enumerate(loads)]
    return Seen({name: tensor.flatten() for name, tensor in seen.tensors.items()}, found)


def _copy() -> Picture:
    given = {"x": torch.arange(21.0), "out": unwritten(21)}
    return Picture(given, "store", ("out",), "programs 0 and 1 store eight elements, 2 five")


def _norm() -> Picture:
    given = {"x": torch.ones(3, 10), "gain": torch.ones(10), "out": unwritten(3, 10)}
    return Picture(given, "store", ("out",), "three programs: each stores its row of ten elements")


def _rotate() -> Picture:
    cos, sin = angles(3, 8)
    given = {"x": torch.ones(3, 2, 8), "gain": torch.ones(2, 8), "cos": cos, "sin": sin}
    given["out"] = unwritten(3, 2, 8)
    return Picture(
        given,
        "store",
        ("out",),
        "six programs, token · head: a row of out is a token, with two heads side by side",
        number=itemgetter(1),
        label=lambda p: f"{p[0]} · {p[1]}",
    )


def _write() -> Picture:
    slots = torch.tensor([14, 15, 6, 7, 10])
    given = {"new": torch.ones(5, 1, 4), "cache": unwritten(8, 2, 1, 4), "slots": slots}
    alt = "tokens 0 and 1 are written to block 7, tokens 2 and 3 to block 3, token 4 to block 5"
    return Picture(given, "store", ("cache",), alt)


def _attend() -> Picture:
    given = {"q": torch.ones(2, 4)} | {n: torch.ones(37, 4) for n in ("keys", "values")}
    given["out"] = unwritten(2, 4)
    alt = "program 0 loads keys 0 to 15 in its turn 0, 16 to 31 in turn 1, 32 to 36 in turn 2"
    return Picture(given, "load", ("keys",), alt)


def _paged() -> dict[str, Any]:
    """Three requests of 45, 9 and 64 tokens in blocks of 8, one KV head."""
    table = torch.tensor([[7, 3, 5, 0, 9, 1, 0, 0], [2, 4, 0, 0, 0, 0, 0, 0],
                          [14, 8, 12, 6, 10, 15, 11, 13]])  # fmt: skip
    given: dict[str, Any] = {"q": torch.ones(3, 2, 16)}
    given |= {name: torch.ones(16, 8, 1, 16) for name in ("keys", "values")}
    return given | {"table": table, "lens": torch.tensor([45, 9, 64])}


def _decode() -> Picture:
    given = _paged() | {"window": 30, "out": unwritten(3, 2, 16)}
    alt = "the number is the request; a row is a block; blocks in front of the window are white"
    return Picture(given, "load", ("keys",), alt)


def _split() -> Picture:
    given = _paged() | {"window": 1000, "parts": unwritten(3, 2, 4, 18)}
    given["out"] = unwritten(3, 2, 16)
    alt = "request · part: request 2's eight blocks are loaded by four programs, two blocks each"
    return Picture(
        given,
        "load",
        ("keys",),
        alt,
        number=itemgetter(2),
        label=lambda p: f"{p[0]} · {p[2]}",
    )


_PICTURES = {
    "copy": _copy,
    "norm": _norm,
    "rotate": _rotate,
    "write": _write,
    "attend": _attend,
    "decode": _decode,
    "split_decode": _split,
}
