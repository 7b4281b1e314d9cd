"""The diagrams that several lessons share, each a function from data to a figure.

Invariant: a diagram draws the numbers it is given and computes none.
Used by notebooks 01, 02, 04 to 09 and 17; the style is plamo_ref/teaching/figures.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from plamo_ref.config import Plamo2Config
from plamo_ref.teaching.figures import BLACK, BLUE, GREY, VERMILION, figure, style_of

_LETTERS = {"mamba": "M", "sliding_window": "W", "full": "F"}


def _box(
    ax: Axes, x: float, y: float, kind: str | int, text: str = "", *, width: float = 1.0
) -> None:
    """One cell of a strip: colour and hatch of its kind, text on a white plate."""
    style = style_of(kind)
    look: dict[str, Any] = {
        "facecolor": style.colour,
        "edgecolor": BLACK,
        "hatch": style.hatch,
        "linewidth": 0.8,
    }
    ax.add_patch(Rectangle((x, y - 0.4), width, 0.8, **look))
    if text:
        plate = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
        ax.text(x + width / 2, y, text, ha="center", va="center", fontsize=11, bbox=plate)


def _legend(ax: Axes, kinds: Sequence[str | int]) -> None:
    """A legend above the axes: one patch a kind, in order of appearance."""
    names = [k for k in dict.fromkeys(kinds) if k not in ("", "empty")]
    if not names:
        return
    patches = [
        Patch(
            facecolor=style_of(k).colour,
            hatch=style_of(k).hatch,
            edgecolor=BLACK,
            label=str(k).replace("_", " "),
        )
        for k in names
    ]
    fig = ax.get_figure()
    assert isinstance(fig, Figure)  # every axes here comes from figure()
    widest = max(0.75 + 0.095 * len(str(k)) for k in names)
    columns = max(1, min(len(names), int(fig.get_figwidth() / widest)))
    fig.legend(handles=patches, loc="outside upper center", ncols=columns)


def layer_strip(config: Plamo2Config, *, columns: int = 16) -> Figure:
    """The layers in order, `columns` to a line: M Mamba, W sliding window, F full attention."""
    kinds = config.layer_kinds
    lines = -(-len(kinds) // columns)
    fig, ax = figure(max(4.5, 0.5 * min(columns, len(kinds))), 0.6 + 0.8 * lines)
    for i, kind in enumerate(kinds):
        x, y = i % columns, -1.5 * (i // columns)
        _box(ax, x, y, kind, _LETTERS[kind])
        ax.text(x + 0.5, y - 0.68, str(i), ha="center", va="center")
    ax.set(xlim=(-0.05, min(columns, len(kinds)) + 0.05), ylim=(0.5 - 1.5 * lines, 0.5))
    ax.axis("off")
    _legend(ax, kinds)
    return fig


def mask_heatmap(mask: Any, *, title: str = "") -> Figure:
    """A [queries, keys] mask: visible cells are filled and, up to 16 × 16, marked ●."""
    cells = np.asarray(mask, dtype=bool)
    rows, columns = cells.shape
    fig, ax = figure(1.2 + min(6.0, 0.38 * columns), 1.2 + min(6.0, 0.38 * rows))
    ax.imshow(cells, cmap=_two_colours(), vmin=0, vmax=1, aspect="equal")
    if max(rows, columns) <= 16:
        for q, k in np.argwhere(cells):
            ax.text(k, q, "●", ha="center", va="center", color="white", fontsize=11)
        ax.set(xticks=range(columns), yticks=range(rows))
        ax.set_xticks(np.arange(columns) - 0.5, minor=True)
        ax.set_yticks(np.arange(rows) - 0.5, minor=True)
        ax.grid(which="minor", color=GREY, linewidth=0.6)
        ax.tick_params(which="minor", length=0)
    ax.set(xlabel="key position", ylabel="query position", title=title)
    return fig


def _two_colours() -> Any:
    from matplotlib.colors import ListedColormap

    return ListedColormap(["#FFFFFF", BLUE])


def frames(rows: Sequence[tuple[str, Sequence[tuple[str, str | int]]]]) -> Figure:
    """Strips of frames: rows of (label, cells), a cell being (text, kind).

    For block tables, pools, prefixes: `frames([("request 0", [("7", "used"), ("", "free")])])`.
    The legend names the kinds that their cells do not spell out.
    """
    longest = max(len(cells) for _, cells in rows)
    fig, ax = figure(max(4.5, 1.6 + 0.62 * longest), 0.9 + 0.55 * len(rows))
    for y, (_, cells) in enumerate(rows):
        for x, (text, kind) in enumerate(cells):
            _box(ax, x, -y, kind, text)
    ax.set(xlim=(-0.05, longest + 0.05), ylim=(-len(rows) + 0.5, 0.5), xticks=[])
    ax.set_yticks([-y for y in range(len(rows))], [name for name, _ in rows])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    _legend(ax, [kind for _, cells in rows for text, kind in cells if text != kind])
    return fig


def gantt(
    rows: Sequence[tuple[str, int, int, str]], *, budget: int | None = None, title: str = ""
) -> Figure:
    """Requests × steps: rows of (row label, step, tokens, kind); the tokens stand in each cell.

    Rows appear in the order in which their labels first occur. With a `budget` the tokens of each
    step are summed below it as used / budget.
    """
    names = list(dict.fromkeys(name for name, *_ in rows))
    first, last = min(r[1] for r in rows), max(r[1] for r in rows)
    fig, ax = figure(max(4.5, 1.8 + 0.62 * (last - first + 1)), 1.4 + 0.55 * len(names))
    totals = dict.fromkeys(range(first, last + 1), 0)
    for name, step, tokens, kind in rows:
        _box(ax, step, -names.index(name), kind, str(tokens) if tokens else "·")
        totals[step] += tokens
    ticks = [f"{s}\n{n}/{budget}" if budget else str(s) for s, n in totals.items()]
    ax.set_xticks([s + 0.5 for s in totals], ticks)
    ax.set_yticks([-y for y in range(len(names))], names)
    # A little more than the cells, or half of the outer edges would be cut away.
    ax.set(xlim=(first - 0.05, last + 1.05), ylim=(-len(names) + 0.5, 0.5))
    ax.set_xlabel("step" + (", tokens used / budget" if budget else ""))
    if title:
        ax.set_title(title)
    _legend(ax, [kind for *_, kind in rows])
    return fig


def bars(
    values: Mapping[str, float] | Mapping[str, Sequence[float]],
    *,
    groups: Sequence[str] | None = None,
    ylabel: str = "",
    fmt: str = "{:.3g}",
    log: bool = False,
) -> Figure:
    """Vertical bars, each with its number on top.

    `{name: value}` draws one bar a name; `{series: values}` with `groups` draws them side by side.
    """
    series = {str(k): np.atleast_1d(np.asarray(v, dtype=float)) for k, v in values.items()}
    if groups is None:
        groups = list(series)
        series = {"": np.concatenate(list(series.values()))}
    width = 0.8 / len(series)
    fig, ax = figure(max(4.5, 1.0 + 0.75 * len(groups) * len(series)), 3.2)
    for i, (name, heights) in enumerate(series.items()):
        style = style_of(i)
        x = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
        drawn = ax.bar(x, heights, width, color=style.colour, hatch=style.hatch, label=name)
        ax.bar_label(drawn, [fmt.format(h) for h in heights], padding=2, fontsize=11)
    ax.set_xticks(range(len(groups)), groups)
    ax.set_ylabel(ylabel)
    ax.margins(y=0.15)
    if log:
        ax.set_yscale("log")
    if len(series) > 1:
        ax.legend()
    return fig


def stacks(
    groups: Mapping[str, Mapping[str, Sequence[float]]],
    parts: Sequence[str],
    *,
    ylabel: str = "",
    fmt: str = "{:.1f}",
) -> Figure:
    """Groups of bars that are made of `parts`, each group as shares of its first bar.

    Args:
        groups: group → bar → a number for each of `parts`; their sum stands on top.
    """
    fig, ax = figure(max(4.5, 1.0 + 0.6 * sum(map(len, groups.values()))), 3.6)
    places: list[tuple[float, str]] = []
    for group, inside in groups.items():
        first = places[-1][0] + 1.8 if places else 0.0
        one = sum(next(iter(inside.values())))
        for x, (name, numbers) in enumerate(inside.items()):
            bottom = 0.0
            for kind, number in enumerate(numbers):
                style, words = style_of(kind), parts[kind] if not places else None
                look: dict[str, Any] = {"color": style.colour, "hatch": style.hatch}
                ax.bar(first + x, number / one, bottom=bottom, label=words, **look)
                bottom += number / one
            ax.text(first + x, bottom + 0.02, fmt.format(sum(numbers)), ha="center")
            places.append((first + x, name))
        ax.text(first + (len(inside) - 1) / 2, -0.17, group, ha="center", va="top")
    ax.set_xticks([x for x, _ in places], [name for _, name in places])
    ax.set(ylabel=ylabel)
    ax.margins(y=0.15)
    fig.legend(loc="outside upper center", ncols=len(parts))
    return fig


def lines(
    x: Sequence[float] | np.ndarray,
    series: Mapping[str, Any],
    *,
    xlabel: str = "",
    ylabel: str = "",
    logx: bool = False,
    logy: bool = False,
) -> Figure:
    """One line for each named series over `x`, told apart by colour, dash and marker."""
    fig, ax = figure(7.0, 3.4)
    every = max(1, len(x) // 12)
    for i, (name, y) in enumerate(series.items()):
        style = style_of(i)
        ax.plot(
            x,
            y,
            label=name,
            markevery=every,
            color=style.colour,
            linestyle=style.dash,
            marker=style.marker,
        )
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if logx:
        ax.set_xscale("log", base=2)
    if logy:
        ax.set_yscale("log")
    ax.grid(color=GREY, linewidth=0.5)
    if len(series) > 1:
        ax.legend()
    return fig


def thermometer(labels: Sequence[str], errors: Sequence[float], mark: int | None = None) -> Figure:
    """Relative error for each quantity in the order of the forward pass, on a log scale.

    The bar `mark` (the first that parted), and the ones after it, stand out by colour and hatch.
    """
    floor = 1e-17  # an error of exactly zero still gets a stub on the log scale
    fig, ax = figure(7.0, 1.1 + 0.3 * len(labels))
    for y, error in enumerate(errors):
        hot = mark is not None and y >= mark
        colour, hatch = (VERMILION, "//") if hot else (BLUE, "")
        ax.barh(-y, max(error, floor), left=floor, color=colour, hatch=hatch)
        arrow = " ← first" if y == mark else ""
        number = f"{error:.0e}" if error else "0"
        ax.text(max(error, 2 * floor) * 1.6, -y, number + arrow, va="center", fontsize=11)
    ax.set_yticks([-y for y in range(len(labels))], labels)
    ax.set(xscale="log", xlim=(floor, 1e4), xlabel="relative error")
    return fig
