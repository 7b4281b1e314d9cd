"""What lesson 15 draws: panels of errors, and steps that move under the roof as bytes become fewer.

Invariant: a dot is a recorded step; where its bytes come from is the record, where its operations
do is plamo_ref/budget.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plamo_ref.budget import head_flops, linear_flops
from plamo_ref.config import Plamo2Config
from plamo_ref.teaching.figures import BLACK, GREY, SERIES, Style, figure, figures

Row = Mapping[str, Any]
Series = Mapping[str, Sequence[float]]


def look_of(name: str, names: Sequence[str]) -> Style:
    """One colour and marker for the part before the comma, one dash for the part behind it."""
    first, _, rest = name.partition(", ")
    colours = list(dict.fromkeys(n.partition(", ")[0] for n in names))
    dashes = list(dict.fromkeys(n.partition(", ")[2] for n in names))
    style = SERIES[colours.index(first)]
    return Style(style.colour, "", style.marker, ("-", "--", ":")[dashes.index(rest)])


def panels(x: Sequence[float], groups: Mapping[str, Series], *, xlabel: str, ylabel: str) -> Figure:
    """Log-log panels side by side, each with its title and the same series; one legend for all.

    Args:
        groups: title → name of a series → its values over `x`; "a" and "a, b" have one colour.
    """
    fig, axes = figures(9.5, 3.9, columns=len(groups))
    names = list(next(iter(groups.values())))
    for ax, (title, series) in zip(axes, groups.items(), strict=True):
        for name, values in series.items():
            style = look_of(name, names)
            ax.plot(x, values, label=name, color=style.colour, linestyle=style.dash,
                    marker=style.marker, markevery=max(1, len(x) // 6), markersize=5)  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel=xlabel, title=title)
        ax.sharey(axes[0])
        ax.grid(color=GREY, linewidth=0.5)
    axes[0].set_ylabel(ylabel)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def place_of(row: Row, config: Plamo2Config) -> tuple[float, float]:
    """Of a recorded decode step: operations for each byte moved, and TFLOP/s."""
    operations = row["batch"] * (linear_flops(config) + head_flops(config))
    return operations / (bytes_of(row) * 1e9), operations / row["step_ms"] / 1e9


def bytes_of(row: Row) -> float:
    """GB that a recorded step moved."""
    return float(row["gb_per_s"] * row["step_ms"] / 1e3)


def moving_dots(steps: Mapping[str, Sequence[Row]], config: Plamo2Config) -> Figure:
    """Recorded steps under the roof that was measured in the same runs, joined batch by batch.

    Args:
        steps: how numbers are kept → its rows, one a batch; the first is where all begin.
    """
    fig, ax = figure(9.0, 4.8)
    first = next(iter(steps.values()))[0]
    copy, product = first["copy_gb_per_s"] / 1e3, first["product_tflop_per_s"]
    x = np.geomspace(0.5, 1000, 100)
    ax.plot(x, np.minimum(product, x * copy), color=BLACK, linestyle="-", marker="")
    _ways(ax, steps, lambda row: place_of(row, config))
    ax.set(xscale="log", yscale="log", xlabel="FLOP for each byte moved", ylabel="TFLOP/s")
    ax.set(xlim=(0.5, 1000), ylim=(1.5, 1500))
    ax.text(400, product * 1.15, "bfloat16 products", ha="center")
    ax.text(2.0, 12, "bytes", rotation=33, ha="center")
    ax.legend(loc="lower right")
    return fig


def time_over_bytes(steps: Mapping[str, Sequence[Row]]) -> Figure:
    """The same steps by the bytes that they move; the line is a copy of as many."""
    fig, ax = figure(9.0, 4.8)
    copy = next(iter(steps.values()))[0]["copy_gb_per_s"]
    most = 1.1 * max(bytes_of(row) for rows in steps.values() for row in rows)
    ax.plot([0, most], [0, most / copy * 1e3], color=BLACK, linestyle="-", marker="")
    ax.text(0.94 * most, 0.8 * most / copy * 1e3, f"{copy:,.0f} GB/s", ha="center")
    _ways(ax, steps, lambda row: (bytes_of(row), row["step_ms"]))
    ax.set(xlabel="GB that a step moves", ylabel="ms a step", xlim=(0, most), ylim=(0, None))
    ax.grid(color=GREY, linewidth=0.5)
    ax.legend(loc="upper left")
    return fig


def _ways(
    ax: Axes,
    steps: Mapping[str, Sequence[Row]],
    place: Callable[[Row], tuple[float, float]],
) -> None:
    """A dot a step; the dots of a batch are joined, and its number stands at the first."""
    for batch in (row["batch"] for row in next(iter(steps.values()))):
        way = [place(row) for rows in steps.values() for row in rows if row["batch"] == batch]
        ax.plot(*zip(*way, strict=True), color=GREY, linestyle=":", marker="", zorder=1)
        beside: dict[str, Any] = {"xytext": (-8, 6), "textcoords": "offset points", "ha": "right"}
        ax.annotate(str(batch), way[0], **beside)
    for number, (name, rows) in enumerate(steps.items()):
        style, dots = SERIES[number], [place(row) for row in rows]
        look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "markersize": 8}
        ax.plot(*zip(*dots, strict=True), label=name, linestyle="", **look)
