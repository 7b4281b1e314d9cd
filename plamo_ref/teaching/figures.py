"""The house style of figures, and show(): the picture with one line of alt text under it.

Invariant: the same data gives the same bytes on the same machine, colour is never the only cue, no
text is under 11 pt, and no glyph is asked of a font that lacks it.
Used by every notebook; the ready-made diagrams are in plamo_ref/teaching/diagrams.py.
"""

import base64
import io
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from xml.sax.saxutils import escape

import matplotlib as mpl
from cycler import cycler
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito's palette (2008), which readers with any colour vision can tell apart.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILION, YELLOW, BLACK = "#56B4E9", "#D55E00", "#F0E442", "#000000"
GREY = "#BBBBBB"

MAX_SVG_BYTES = 9_000  # above this a PNG is the smaller picture; a whole lesson has 150 kB


@dataclass(frozen=True)
class Style:
    """A colour and its second cues: hatch for areas, marker and dash for lines."""

    colour: str
    hatch: str
    marker: str
    dash: str


SERIES = (
    Style(BLUE, "", "o", "-"),
    Style(ORANGE, "//", "s", "--"),
    Style(GREEN, "--", "^", "-."),
    Style(PURPLE, "xx", "D", ":"),
    Style(SKY, "\\\\", "v", "-"),
    Style(VERMILION, "++", "P", "--"),
    Style(YELLOW, "||", "X", "-."),
)

# Things that mean the same in every lesson look the same in every lesson.
_NAMED = {
    "mamba": 0, "sliding_window": 1, "full": 2,
    "prefill": 0, "decode": 1, "recompute": 3, "preempted": 5, "waiting": 6,
    "used": 0, "cached": 2, "hit": 2, "checkpoint": 3, "miss": 5,
}  # fmt: skip
_EMPTY = Style("#FFFFFF", "", "", "-")


def style_of(kind: str | int) -> Style:
    """The style of a kind: "mamba", "prefill", "free" … or the n-th style of a series."""
    if isinstance(kind, int):
        return SERIES[kind % len(SERIES)]
    if kind in ("free", "empty", "padding", ""):
        return _EMPTY
    return SERIES[_NAMED.get(kind, sum(kind.encode()) % len(SERIES))]


_CJK_FONTS = (
    "Noto Sans CJK JP", "Noto Sans JP", "Source Han Sans JP", "IPAexGothic", "IPAGothic",
    "TakaoGothic", "VL Gothic", "Hiragino Sans", "Yu Gothic", "Meiryo", "MS Gothic",
)  # fmt: skip


@lru_cache(maxsize=1)
def japanese_font() -> str | None:
    """The name of an installed font with Japanese glyphs, or None."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in _CJK_FONTS if name in installed), None)


def label(japanese: str, romanised: str) -> str:
    """`japanese` where its glyphs can be drawn, else `romanised`."""
    return japanese if japanese_font() else romanised


def _families() -> list[str]:
    japanese = japanese_font()
    return ["DejaVu Sans", japanese] if japanese else ["DejaVu Sans"]


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    paths = (font_manager.findfont(family) for family in _families())
    return frozenset(c for path in paths for c in font_manager.get_font(path).get_charmap())


def drawable(text: str) -> str:
    r"""`text` with each character that no installed font has written as \uXXXX."""
    known = _drawable()
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in text)


def use_style() -> None:
    """Set matplotlib's defaults to the house style. `figure` does it for you."""
    mpl.rcParams.update(
        {
            "font.family": _families(),
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.labelsize": 11,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
            "legend.fontsize": 11,
            "legend.frameon": False,
            "figure.facecolor": "white",  # opaque: legible on JupyterLab's dark theme too
            "savefig.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(
                color=[s.colour for s in SERIES],
                linestyle=[s.dash for s in SERIES],
                marker=[s.marker for s in SERIES],
            ),
            "hatch.linewidth": 0.6,
            "figure.constrained_layout.w_pad": 0.1,
            "figure.constrained_layout.h_pad": 0.08,
            "svg.fonttype": "none",  # text stays text: small, searchable, readable aloud
            "svg.hashsalt": "plamo-ref",
        }
    )


def figure(width: float = 7.0, height: float = 3.0) -> tuple[Figure, Axes]:
    """An empty figure of width × height inches in the house style, and its axes."""
    use_style()
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, fig.add_subplot()


def figures(width: float = 9.0, height: float = 3.0, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """A figure with `columns` axes side by side."""
    use_style()
    fig = Figure(figsize=(width, height), layout="constrained")
    return fig, list(fig.subplots(1, columns, squeeze=False)[0])


def _lay_out(fig: Figure) -> None:
    """Fix the layout once: laying out again at every rendering would let it drift."""
    engine = fig.get_layout_engine()
    if engine is not None:
        engine.execute(fig)
        fig.set_layout_engine("none")


def svg(fig: Figure, alt: str = "") -> str:
    """The figure as SVG without date or version, titled `alt` for screen readers."""
    _lay_out(fig)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "plamo-ref", "svg.fonttype": "none"}):
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for waste in (r"(?s)<metadata>.*?</metadata>", r' transform="rotate\(-0 [^"]*\)"', r"(?m)^ +"):
        text = re.sub(waste, "", text)
    title = f"<title>{escape(alt)}</title>" if alt else ""
    return re.sub("<svg ([^>]*)>", lambda m: f'<svg role="img" {m[1]}>{title}', text, count=1)


def png(fig: Figure) -> bytes:
    """The figure as PNG at 96 dots an inch, in a palette of 64 colours (a third of the bytes)."""
    _lay_out(fig)
    full, small = io.BytesIO(), io.BytesIO()
    fig.savefig(full, format="png", dpi=96)
    picture = Image.open(full).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    picture.save(small, format="png", optimize=True)
    return small.getvalue()


def show(fig: Figure, alt: str) -> None:
    """Display the figure (SVG when small, PNG otherwise) and print one line of alt text.

    Raises:
        ValueError: `alt` is empty or longer than one line.
    """
    if not alt.strip() or "\n" in alt:
        raise ValueError(f"show: alt must be one line that says what the figure shows: {alt!r}")
    bundle: dict[str, Any] = {"text/plain": "<figure>"}
    drawing = svg(fig, alt)
    if len(drawing.encode()) <= MAX_SVG_BYTES:
        kind, bundle["image/svg+xml"] = "image/svg+xml", drawing
    else:
        kind, bundle["image/png"] = "image/png", base64.b64encode(png(fig)).decode()
    from IPython.display import display  # here: who only times kernels needs none

    display(bundle, raw=True, metadata={kind: {"alt": alt}})
    print(f"[figure] {alt}")
