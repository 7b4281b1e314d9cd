"""Times of single kernels: recorded ones beside their floors, and the roofline they stand under.

    rate ≤ min(product rate, intensity · copy rate)        intensity: operations for each byte moved

Invariant: a dot is a measurement, with its origin printed; without one there are roofs and no dots.
Used by lessons 10 and 11; the measurements are made by `plamo-ref bench kernels`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from plamo_ref.teaching.figures import BLACK, BLUE, GREY, VERMILION, figure, style_of
from plamo_ref.teaching.recorded import Recorded, RecordedError

Row = Mapping[str, Any]


def ceilings_of(record: Recorded) -> tuple[float, float]:
    """Bytes/s copied and FLOP/s of products, as measured in the same run.

    Raises:
        RecordedError: the record does not have them.
    """
    for row in record.data:
        if "copy_gb_per_s" in row:
            return row["copy_gb_per_s"] * 1e9, row["product_tflop_per_s"] * 1e12
    raise RecordedError(f"{record.name}: no row with copy_gb_per_s; measure it again")


def measured_rates(record: Recorded, work: Mapping[str, tuple[float, str]]) -> dict[str, float]:
    """FLOP/s of each kernel.

    Args:
        work: kernel → operations, and "operation case" under which its time is recorded.

    Raises:
        RecordedError: a case is not in the record. A kernel without its dot would look measured.
    """
    seconds = {f"{row['operation']} {row['case']}": row["us"] / 1e6 for row in record.data}
    missing = [case for _, case in work.values() if case not in seconds]
    if missing:
        raise RecordedError(f"{record.name}: no row of {', '.join(missing)}; measure it again")
    return {name: operations / seconds[case] for name, (operations, case) in work.items()}


def against_floor(rows: Sequence[Row]) -> tuple[Figure, str]:
    """Each kernel's time and its floor in µs, on a log scale, with its alt text."""
    fig, ax = figure(8.0, 1.2 + 0.34 * len(rows))
    fig.set_dpi(96)  # as it will be drawn: hinted text of another size has other proportions
    for y, row in enumerate(rows):
        ax.plot([row["floor_us"], row["us"]], [y, y], color=GREY, linestyle="-", marker="")
        ax.plot(row["floor_us"], y, color=BLACK, marker="|", markersize=14, linestyle="")
        ax.plot(row["us"], y, color=BLUE, marker="o", linestyle="")
        share = f"{row['us']:.1f} µs, {row['percent_of_floor']:.0f} %"
        ax.text(row["us"] * 1.15, y, share, va="center", in_layout=False)
    ax.set_yticks(range(len(rows)), [f"{row['operation']} {row['case']}" for row in rows])
    ax.set(xscale="log", xlabel="µs:  | floor   ● measured (share of the floor's speed)")
    ax.xaxis.set_minor_formatter(NullFormatter())  # its labels would overlap
    ax.set_xlim(right=max(row["us"] for row in rows) * 24)  # room for the labels
    ax.invert_yaxis()
    near = max(rows, key=lambda row: row["percent_of_floor"])
    far = min(rows, key=lambda row: row["percent_of_floor"])
    words = [f"{r['operation']} {r['case']} at {r['percent_of_floor']:.0f} %" for r in (near, far)]
    return fig, f"{len(rows)} kernels against their floors; nearest {words[0]}, farthest {words[1]}"


def roofline(
    intensities: Mapping[str, float],
    copy: float,
    product: float,
    measured: Mapping[str, float] | None = None,
) -> Figure:
    """Where kernels may stand, and with `measured` (FLOP/s) where they do.

    Args:
        intensities: kernel → operations for each byte moved.
        copy, product: the machine's ceilings, bytes/s and FLOP/s.
        measured: kernel → FLOP/s; kernels without a measurement show their place on the roof.
    """
    fig, ax = figure(8.0, 4.4)
    left = min(0.1, min(intensities.values()) / 2)
    x = np.geomspace(left, 4 * product / copy, 200)
    ax.plot(x, np.minimum(product, x * copy) / 1e12, color=BLACK, linestyle="-", marker="")
    for i, (name, intensity) in enumerate(intensities.items()):
        style, roof = style_of(i), min(product, intensity * copy) / 1e12
        look: dict[str, Any] = {"marker": style.marker, "linestyle": "", "markersize": 9}
        text = f"{name}: {intensity:.3g} FLOP/byte"
        if measured and name in measured:
            rate = measured[name] / 1e12
            ax.plot([intensity] * 2, [rate, roof], color=GREY, linestyle=":", marker="")
            ax.plot(intensity, rate, color=style.colour, label=text, **look)
        else:
            hollow: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": style.colour}
            ax.plot(intensity, roof, label=text, **look, **hollow)
    ridge = product / copy
    ax.axvline(ridge, color=VERMILION, linestyle="--", marker="", linewidth=1)
    ax.text(ridge * 0.9, product / 1e12 / 300, f"ridge {ridge:.0f}", ha="right", color=VERMILION)
    ax.set(xscale="log", yscale="log", xlabel="FLOP for each byte moved", ylabel="TFLOP/s")
    ax.legend(loc="upper left")
    return fig
