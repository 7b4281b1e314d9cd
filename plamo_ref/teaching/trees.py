"""A radix tree of texts as a picture: which of them begin alike, and where a moment is kept.

Invariant: it draws any tree whose nodes have `tokens`, `position`, `children` and `kept`: the one
that the lesson builds, and that of engine/memory/radix.py; it changes neither.
Used by notebooks/09_hybrid_prefix_caching.ipynb.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from plamo_ref.teaching.figures import BLACK, BLUE, GREY, figure

_CHARACTER, _ROW, _SHORTEST = 0.105, 0.62, 0.55  # inches
_MOST_CHARACTERS = 26  # on an edge; the rest of a longer text is cut off


class TreeNode(Protocol):
    """A position in some texts."""

    @property
    def tokens(self) -> tuple[Any, ...]: ...  # from the parent to here
    @property
    def position(self) -> int: ...  # tokens from the root to here
    @property
    def children(self) -> Mapping[Any, "TreeNode"]: ...
    @property
    def kept(self) -> object | None: ...


def prefix_tree(root: TreeNode, write: Callable[[tuple[Any, ...]], str] | None = None) -> Figure:
    """The tree from left to right: what stands on an edge, and the position at its end.

    A filled box is a moment that is kept, a dashed one a place where texts only part.

    Args:
        write: an edge's tokens → what stands on it; None: the tokens, with blanks between them.
    """
    drawn = list(_places(root, 0.0, 0, write or (lambda tokens: " ".join(map(str, tokens)))))
    rows = 1 + max(row for _, _, _, row, _ in drawn)
    width = max(x for _, _, x, _, _ in drawn) + 0.7
    fig, ax = figure(max(4.5, width + 0.4), 0.8 + _ROW * rows)
    for node, start, x, row, text in drawn:
        if node is not root:
            parent_row = start[1]
            ax.plot([start[0], start[0], x], [-parent_row, -row, -row], "-", color=GREY, marker="")
            ax.text((start[0] + x) / 2, -row + 0.09, text, ha="center", va="bottom")
    for node, _, x, row, _ in drawn:
        _draw_node(ax, x, -row, node)
    ax.set(xlim=(-0.3, max(4.2, width)), ylim=(-rows + 0.5, 0.6))
    ax.axis("off")
    looks = {"state and window kept": _KEPT, "nothing kept": _PLAIN}
    fig.legend(
        handles=[Patch(label=name, **look) for name, look in looks.items()],
        loc="outside lower left",
        ncols=2,
    )
    return fig


_KEPT: dict[str, Any] = {"facecolor": BLUE, "edgecolor": BLACK, "linewidth": 1.2}
_PLAIN: dict[str, Any] = {"facecolor": "white", "edgecolor": BLACK, "linestyle": "--"}


def _draw_node(ax: Axes, x: float, y: float, node: TreeNode) -> None:
    kept = node.kept is not None
    box = {"boxstyle": "square,pad=0.3", **(_KEPT if kept else _PLAIN)}
    colour = "white" if kept else BLACK
    ax.text(x, y, str(node.position), ha="center", va="center", color=colour, bbox=box)


# A node, its parent's x and row, its own x and row, what stands on its edge.
Place = tuple[TreeNode, tuple[float, int], float, int, str]


def _places(
    root: TreeNode, x: float, row: int, write: Callable[[tuple[Any, ...]], str]
) -> Iterator[Place]:
    """Where each node goes: a branch has the rows from `row` on, its first text in the first."""
    yield root, (x, row), x, row, ""
    next_row = row
    for child in root.children.values():
        text = _short(write(child.tokens))
        end = x + _SHORTEST + _CHARACTER * len(text)
        branch = list(_places(child, end, next_row, write))
        yield child, (x, row), end, next_row, text
        yield from branch[1:]
        next_row = 1 + max(place[3] for place in branch)


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 2]} …"
