"""Number formats drawn to scale: what their bits mean, and which numbers they have.

    1 sign bit · e exponent bits · m mantissa bits      a float
    1 sign bit · m bits of a whole number               an integer

Invariant: numbers are asked of torch, where it has the format; nothing is typed from a table.
Used by lesson 15.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from plamo_ref.teaching.figures import BLACK, SERIES, figure, use_style

_PIXEL = 1e-4  # of the linear axis, below which bfloat16 has 30,000 numbers
_WHAT = ("sign", "exponent", "mantissa, or whole number")


@dataclass(frozen=True)
class Format:
    """A format by its bits, the sign's left out: it has one."""

    name: str
    exponent: int  # 0: an integer
    mantissa: int

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    def positive(self) -> Tensor:
        """All its numbers above 0, in order, over the largest; of 8 bits or fewer, or bfloat16."""
        if not self.exponent:
            numbers = torch.arange(1, 1 << self.mantissa)  # even on both sides: -128 is not used
        else:
            patterns = torch.arange(1, 1 << (self.bits - 1), dtype=torch.int32)
            narrow = torch.uint8 if self.bits == 8 else torch.int16
            dtype = torch.float8_e4m3fn if self.bits == 8 else torch.bfloat16
            numbers = patterns.to(narrow).view(dtype).float()
        numbers = numbers.double()[numbers.isfinite()]
        return numbers / numbers.max()


FORMATS = (
    Format("float32", 8, 23),
    Format("bfloat16", 8, 7),
    Format("e4m3", 4, 3),
    Format("int8", 0, 7),
    Format("int4", 0, 3),
)


def bit_boxes(formats: Sequence[Format] = FORMATS) -> Figure:
    """A box a bit, all bits of one width."""
    fig, ax = figure(9.0, 0.5 + 0.38 * len(formats))
    for row, each in enumerate(formats):
        kinds = [0] + [1] * each.exponent + [2] * each.mantissa
        for place, kind in enumerate(kinds):
            style = SERIES[kind]
            ax.add_patch(Rectangle((place, -row), 1, 0.75, facecolor=style.colour,
                                   hatch=style.hatch, edgecolor=BLACK, linewidth=0.6,
                                   label=_WHAT[kind] if row == 0 else None))  # fmt: skip
        size = f"{each.bits // 8} B" if each.bits >= 8 else "½ B"
        ax.text(each.bits + 0.4, -row + 0.37, f"{each.name}, {size}", va="center")
    handles, labels = ax.get_legend_handles_labels()
    first = dict(zip(labels, handles, strict=True))
    ax.legend([first[w] for w in _WHAT], _WHAT, loc="lower right", bbox_to_anchor=(1.0, 0.0))
    ax.set(xlim=(-0.3, 40), ylim=(-len(formats) + 0.8, 0.9))
    ax.axis("off")
    return fig


def combs(formats: Sequence[Format], least: float = 1e-4) -> Figure:
    """A tooth a number, on a linear axis above and a logarithmic one from `least` below."""
    use_style()
    fig = Figure(figsize=(8.4, 0.8 + 0.56 * len(formats)), layout="constrained")
    for number, scale in enumerate(("linear", "log")):
        ax = fig.add_subplot(2, 1, number + 1)
        for row, each in enumerate(reversed(formats)):
            teeth = each.positive()
            teeth = teeth[teeth > (least if scale == "log" else _PIXEL)]
            ax.vlines(teeth, row, row + 0.8, linewidth=0.5, color=BLACK)
        ax.set_yticks([row + 0.4 for row in range(len(formats))],
                      [each.name for each in reversed(formats)])  # fmt: skip
        ax.set(xscale=scale, xlim=(least if scale == "log" else 0, 1.01))
        ax.set_xlabel(f"share of the largest number, {scale}")
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    return fig
