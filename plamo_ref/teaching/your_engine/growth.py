"""What of the engine is the reader's, what is lent to go on, and how far it is from the package.

Invariant: a lent verb calls whatever verbs the reader has, so it never hides one; what the reader
has written is never replaced unasked.
Used by lesson 08b.
"""

import inspect
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from matplotlib.figure import Figure

from plamo_ref.engine.batching import build_batch
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.scheduling.scheduler_v1 import V1Scheduler
from plamo_ref.kernels.sample.twin import kept_weights
from plamo_ref.model import Attention, Mamba, Plamo2Model
from plamo_ref.teaching.figures import BLUE, figure, style_of
from plamo_ref.teaching.your_engine import verbs

Namespace = MutableMapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """A verb, the lessons whose idea it is, and what does its work in the package."""

    name: str
    lessons: str
    package: Callable[..., Any]
    adds: str  # what the package's does besides
    place: tuple[float, float]  # in the picture


PIECES = (
    Piece("step", "07", EngineCore.step, "overlap, aborts, errors", (0, 3)),
    Piece("schedule", "08", V1Scheduler.schedule, "prefix hits, grammars", (1, 3)),
    Piece("fits", "06", HybridCache.fit, "how much of it fits, not only whether", (2, 3.6)),
    Piece("reserve", "05, 06", HybridCache.allocate, "shared and frozen blocks", (2, 3)),
    Piece("release", "06", HybridCache.release, "the same", (2, 2.4)),
    Piece("flat_batch", "07", build_batch, "one vector for all, decodes first", (1, 2)),
    Piece("forward", "04", Plamo2Model.through_layers, "compiled layers", (1, 1)),
    Piece("attention", "02, 05", Attention.__call__, "kernels for all requests at once", (2, 1.4)),
    Piece("mamba", "03, 06", Mamba.__call__, "the state stays where it is", (2, 0.6)),
    Piece("sample", "04b", kept_weights, "top-k, top-p, min-p, all rows at once", (1, 0)),
)
CALLS = (
    *(("step", name) for name in ("schedule", "flat_batch", "forward", "sample")),
    *(("schedule", name) for name in ("fits", "reserve", "release")),
    *(("forward", name) for name in ("attention", "mamba")),
)


def lines_of(function: Callable[..., Any]) -> int:
    """Lines that are not empty, docstring included."""
    return sum(bool(line.strip()) for line in inspect.getsource(function).splitlines())


class Growth:
    """The verbs of an engine as they stand in the reader's namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace

    def owner(self, name: str) -> str:
        """ "yours", "lent" or "open"."""
        function = self.namespace.get(name)
        if function is None or "NotImplementedError" in function.__code__.co_names:
            return "open"
        lent = function.__code__ is getattr(verbs, name).__code__
        return "lent" if lent else "yours"

    def fill(self, *names: str, lend: bool = False) -> None:
        """Lend what is open; with `lend` also what is not, to go on without it."""
        for name in names:
            if lend or self.owner(name) == "open":
                ours: FunctionType = getattr(verbs, name)
                self.namespace[name] = FunctionType(ours.__code__, self.namespace, name)  # type: ignore[arg-type]
            mine = self.owner(name) == "yours"
            says = f"yours, {self._lines(name)} lines" if mine else "lent, until yours passes"
            print(f"{name}: {says}")

    def _lines(self, name: str) -> int:
        return lines_of(self.namespace[name])

    def picture(self) -> tuple[Figure, str]:
        """Who calls whom; blue: the reader's, grey: lent, dashed: open."""
        fig, ax = figure(8.4, 3.4)
        places = {piece.name: (3.1 * piece.place[0], piece.place[1]) for piece in PIECES}
        for caller, called in CALLS:
            (x, y), (to_x, to_y) = places[caller], places[called]
            ax.plot([x, to_x], [y, to_y], "-", color="black", marker="", linewidth=1, zorder=1)
        owners = {piece.name: self.owner(piece.name) for piece in PIECES}
        for piece in PIECES:
            owner = owners[piece.name]
            look = {
                "facecolor": {"yours": BLUE, "lent": "#DDDDDD", "open": "white"}[owner],
                "linestyle": "--" if owner == "open" else "-",
                "edgecolor": "black",
                "boxstyle": "round,pad=0.35",
            }
            text = f"{piece.name}  ({piece.lessons})"
            ax.text(
                *places[piece.name], text, ha="center", va="center", fontsize=11,
                color="white" if owner == "yours" else "black", bbox=look,
            )  # fmt: skip
        ax.set(xlim=(-1.1, 7.4), ylim=(-0.5, 4.1))
        ax.axis("off")
        count = {kind: list(owners.values()).count(kind) for kind in ("yours", "lent", "open")}
        said = ", ".join(f"{n} {kind}" for kind, n in count.items())
        ax.set_title(f"{said}   (blue: yours, grey: lent, dashed: open)")
        return fig, f"ten verbs, from step to mamba: {said}"

    def difference(self) -> str:
        """A line a verb: lines here, lines of what does it in the package, and what that adds."""
        rows = [f"{'verb':11} {'whose':6} {'lines':>5}   {'in the package':26} {'lines':>5}   adds"]
        for piece in PIECES:
            name = piece.package.__qualname__.removesuffix(".__call__")
            here, there = self._lines(piece.name), lines_of(piece.package)
            owner = self.owner(piece.name)
            rows.append(f"{piece.name:11} {owner:6} {here:5}   {name:26} {there:5}   {piece.adds}")
        both = [sum(map(self._lines, (p.name for p in PIECES)))]
        both.append(sum(lines_of(p.package) for p in PIECES))
        return "\n".join([*rows, f"{'all':18} {both[0]:5}   {'':26} {both[1]:5}"])


def bands(held: Sequence[Sequence[int]], names: str, capacity: int) -> Figure:
    """Blocks held by each request (a column each) after every step, one on the other."""
    fig, ax = figure(8.6, 3.0)
    steps, bottom = range(1, len(held) + 1), [0] * len(held)
    for number, name in enumerate(names):
        mine = [row[number] for row in held]
        top = [low + n for low, n in zip(bottom, mine, strict=True)]
        style = style_of(number)
        look: dict[str, Any] = {"color": style.colour, "hatch": style.hatch, "edgecolor": "black"}
        ax.bar(steps, mine, bottom=bottom, width=1.0, linewidth=0.3, **look)
        widest = max(range(len(mine)), key=lambda i: mine[i])
        plate = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        ax.text(
            widest + 1, (bottom[widest] + top[widest]) / 2, name, ha="center", va="center",
            fontsize=11, bbox=plate,
        )  # fmt: skip
        bottom = top
    ax.axhline(capacity, color="black", linewidth=1.5)
    ax.set(xlabel="step", ylabel="blocks", xlim=(0.5, len(held) + 0.5), ylim=(0, capacity + 3))
    return fig
