"""What lesson 15 draws: panels of errors, and steps that move as their bytes become fewer.

Invariant: a dot is a recorded step; its time, its bytes and the line come from one record.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

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


def panels(groups: Mapping[str, tuple[Sequence[float], Series]], *, xlabel: str) -> Figure:
    """Panels side by side with one legend for all, y and a wide x on log scales.

    Args:
        groups: title, which says what is drawn → x, and series over it by name: the same names in
            each, or some of the first's. "a" and "a, b" have one colour.
    """
    fig, axes = figures(7.4, 2.9, columns=len(groups))
    names = list(next(iter(groups.values()))[1])
    for ax, (title, (x, series)) in zip(axes, groups.items(), strict=True):
        for name, values in series.items():
            style, every = look_of(name, names), max(1, len(x) // 3)
            line: dict[str, Any] = {"color": style.colour, "linestyle": style.dash, "markersize": 5}
            ax.plot(x, values, label=name, marker=style.marker, markevery=every, **line)
        wide = max(x) > 100 * min(x)
        ax.set(xscale="log" if wide else "linear", yscale="log", xlabel=xlabel, title=title)
        ax.minorticks_off()
    columns = len({name.partition(", ")[0] for name in names})
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=columns)
    return fig


def bytes_of(row: Row) -> float:
    """GB that a recorded step moved."""
    return float(row["gb_per_s"] * row["step_ms"] / 1e3)


def moving_dots(steps: Mapping[str, Sequence[Row]]) -> Figure:
    """The time of recorded steps over the bytes that they move, joined batch by batch; the line is
    a copy of as many bytes, measured in the same runs.

    Args:
        steps: how numbers are kept → its rows, one a batch; the first is where all begin.
    """
    fig, ax = figure(6.4, 3.5)
    copy = next(iter(steps.values()))[0]["copy_gb_per_s"]
    most = 1.1 * max(bytes_of(row) for rows in steps.values() for row in rows)
    ax.plot([0, most], [0, most / copy * 1e3], color=BLACK, linestyle="-", marker="")
    ax.text(0.98 * most, 0.75 * most / copy * 1e3, f"{copy:,.0f} GB/s", ha="right")
    for batch in (row["batch"] for row in next(iter(steps.values()))):
        way = [
            (bytes_of(row), row["step_ms"])
            for rows in steps.values()
            for row in rows
            if row["batch"] == batch
        ]
        ax.plot(*zip(*way, strict=True), color=GREY, linestyle=":", marker="", zorder=1)
        beside: dict[str, Any] = {"xytext": (8, 1), "textcoords": "offset points", "ha": "left"}
        ax.annotate(str(batch), way[0], **beside)
    for number, (name, rows) in enumerate(steps.items()):
        style, x = SERIES[number], [bytes_of(row) for row in rows]
        look: dict[str, Any] = {"color": style.colour, "marker": style.marker, "markersize": 8}
        ax.plot(x, [row["step_ms"] for row in rows], label=name, linestyle="", **look)
    longest = max(row["step_ms"] for rows in steps.values() for row in rows)
    ax.set(xlabel="GB that a step moves", xlim=(0, most))
    ax.set(ylabel="ms a step", ylim=(0, 1.12 * longest))
    ax.legend(loc="upper left")
    return fig
