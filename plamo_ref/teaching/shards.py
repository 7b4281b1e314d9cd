"""sharding_map(): the tensors of a layer as boxes, each part with the ranks that have it.

Invariant: it draws what it is told of each rank and knows no rule of its own, so a wrong cut looks
wrong: what nobody has is empty, what two have says both.
Used by lesson 14.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from plamo_ref.config import Plamo2Config
from plamo_ref.parallel.cut import pieces
from plamo_ref.teaching.figures import BLACK, figure, style_of

Index = tuple[slice, ...]
Part = tuple[int, int, tuple[int, ...]]  # from, to, and whose
WIDE, HIGH = 2.3, 2.6  # from one box to the next
TENSORS = (  # in two layers, of which the first is a Mamba layer
    *("0.mixer.in_proj", "0.mixer.bcdt_proj", "0.mixer.dt_proj", "0.mixer.out_proj"),
    *("1.mixer.qkv_proj", "1.mixer.o_proj", "1.mlp.gate_up_proj", "1.mlp.down_proj"),
)


def owners(shape: Sequence[int], indices: Sequence[Sequence[Index]]) -> tuple[int, list[Part]]:
    """Along which axis a tensor is cut, and its parts there: neighbours of one owner are one.

    Args:
        shape: of the whole tensor.
        indices: of each rank: the parts that it has.
    """
    everything = slice(None)
    cuts = [a for own in indices for i in own for a, part in enumerate(i) if part != everything]
    axis = cuts[0] if cuts else 0
    have = [[range(shape[axis])[i[axis] if axis < len(i) else everything] for i in own]
            for own in indices]  # fmt: skip
    ends = {0, shape[axis], *(e for own in have for r in own for e in (r.start, r.stop))}
    parts: list[Part] = []
    for start, stop in pairwise(sorted(ends)):
        whose = tuple(n for n, own in enumerate(have) if any(start in r for r in own))
        if parts and parts[-1][2] == whose:
            start = parts.pop()[0]
        parts.append((start, stop, whose))
    return axis, parts


def sharding_map(
    shapes: Mapping[str, tuple[int, ...]],
    has: Callable[[str, int], Sequence[Index]],
    size: int,
    *,
    columns: int = 4,
) -> Figure:
    """Boxes with rows downwards; sides grow slowly with sizes, parts are in proportion.

    Args:
        shapes: name → shape of the whole tensor.
        has: a name and a rank → the parts that this rank has, as `parallel.cut.pieces` gives them.
        size: how many ranks there are.
    """
    lines = -(-len(shapes) // columns)
    fig, ax = figure(2.3 * columns, 0.3 + HIGH * lines)
    most = max(max(shape) for shape in shapes.values())
    for number, (name, shape) in enumerate(shapes.items()):
        x, y = WIDE * (number % columns), -HIGH * (number // columns)
        width = 1.5 * _side(shape[1] if len(shape) > 1 else 1, most)
        height = 1.7 * _side(shape[0], most)
        axis, parts = owners(shape, [has(name, rank) for rank in range(size)])
        ax.text(x, y + 0.1, f"{name}\n{' × '.join(map(str, shape))}", va="bottom")
        for start, stop, whose in parts:
            low, high = start / shape[axis], stop / shape[axis]
            if axis == 0:
                box = (x, y - high * height, width, (high - low) * height)
            else:
                box = (x + low * width, y - height, (high - low) * width, height)
            _part(ax, *box, whose, size)
    ax.set(xlim=(-0.05, WIDE * columns), ylim=(-HIGH * lines + 0.5, 0.6))
    ax.axis("off")
    return fig


def _side(count: int, most: int) -> float:
    """At most 1, and never too thin to be seen."""
    return max(0.2, float((count / most) ** 0.35))


def _part(
    ax: Axes, x: float, y: float, width: float, height: float, whose: tuple[int, ...], size: int
) -> None:
    """One part: the colour and hatch of a rank, or white where it is everybody's; who, in words."""
    alone = len(whose) < size
    style = style_of(whose[0] if whose and alone else "empty")
    look: dict[str, Any] = {
        "facecolor": style.colour,
        "hatch": style.hatch,
        "edgecolor": BLACK,
        "linewidth": 0.8,
    }
    ax.add_patch(Rectangle((x, y), width, height, **look))
    words = ", ".join(map(str, whose)) if alone else "all"
    middle = y + height / 2
    if height > 0.17 and width > 0.1 * len(words):
        plate = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        ax.text(x + width / 2, middle, words, ha="center", va="center", bbox=plate)
    elif len(whose) > 1:  # what is copied is named in any case
        ax.text(x + width + 0.05, middle, words, va="center")


def layers_map(config: Plamo2Config, size: int) -> Figure:
    """A Mamba layer's tensors, an attention layer's, and an MLP's, as the package cuts them."""
    full = {name.split(".")[-1]: f"model.layers.layers.{name}.weight" for name in TENSORS}
    shapes = {short: config.tensor_shapes[name] for short, name in full.items()}
    return sharding_map(shapes, lambda short, rank: pieces(config, full[short], rank, size), size)
