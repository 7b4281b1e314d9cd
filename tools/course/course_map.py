"""The map of the course: `python -m tools.course.course_map docs/course.png`.

Invariant: names, prerequisites and minutes are read from the lessons' own title cards, the cuts
from the slides' table; written down here are only the parts and what one can do after each.
"""

import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import nbformat
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plamo_ref.teaching.figures import BLUE, GREEN, ORANGE, PURPLE, SKY
from tools.course import slides
from tools.course.editions import number_of
from tools.course.measured import minutes_of

WIDTH, STEP = 2.75, 0.84  # from one box to the next


@dataclass(frozen=True)
class Part:
    """Lessons that belong together, and what one can do after them."""

    title: str
    numbers: tuple[str, ...]
    after: str
    colour: str


PARTS = (
    Part("The model", ("00", "01", "02", "03", "04", "04b"), "you can read a config as a bill, "
         "write both kinds of layers, and prove a model right or find where it is wrong", SKY),
    Part("The engine", ("05", "06", "07", "08", "08b", "09"), "you have an engine of your own, and "
         "can say of any step who is in it, in whose memory, and why", BLUE),
    Part("The GPU", ("10", "11", "12", "13", "14", "15"), "you can count a kernel's bytes, write "
         "and compile it, find the gaps in a timeline, cut a model, and say what fewer bits cost",
         ORANGE),
    Part("The door", ("16", "17"), "you can promise an answer's form and measure a server "
         "honestly", GREEN),
    Part("The clinic", ("18",), "you can find a bug that no text shows", PURPLE),
)  # fmt: skip


@dataclass(frozen=True)
class Card:
    number: str
    name: str
    minutes: int
    needs: tuple[str, ...]  # numbers of the lessons that its prerequisites name


def cards(folder: Path) -> dict[str, Card]:
    """The title card of each lesson, by number."""
    found = {}
    for path in sorted(folder.glob("[0-9][0-9]*_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        title = notebook.cells[0].source
        needs = re.search(r"(?i)prerequisites\**\s*\|([^\n]*)", title)
        name = re.search(r"^# \d\d\w? · ([^:\n]*)", title)
        if needs is None or name is None:
            raise ValueError(f"{path.name}: a title card without a name or prerequisites")
        numbers = tuple(sorted(re.findall(r"\b(\d\d[a-z]?)\b", needs[1])))
        number = number_of(path)
        found[number] = Card(number, name[1], minutes_of(notebook), numbers)
    return found


def course_map(folder: Path) -> Figure:
    """A column a part; the frame of a lesson says in which cuts it is."""
    known = cards(folder)
    fig = Figure(figsize=(13, 6.0), layout="constrained", facecolor="white")
    ax = fig.subplots()
    for column, part in enumerate(PARTS):
        _draw_part(ax, part, column * WIDTH)
        for row, number in enumerate(part.numbers):
            _draw_lesson(ax, known[number], column * WIDTH, -row * STEP)
    right = WIDTH * (len(PARTS) - 1)
    frames = "bold frame: half a day · solid: one day · dashed: two days"
    ax.text(right + 1.2, -5.2, frames, ha="right", va="bottom", fontsize=11)
    ax.set(xlim=(-1.25, right + 1.25), ylim=(-5.3, 1.0))
    ax.axis("off")
    return fig


def _draw_part(ax: Axes, part: Part, x: float) -> None:
    ax.text(x, 0.75, part.title, ha="center", va="center", fontsize=15, fontweight="bold")
    ax.plot([x - 1.15, x + 1.15], [0.5, 0.5], color=part.colour, linewidth=5)
    says = "\n".join(textwrap.wrap(f"Then {part.after}.", 30))
    ax.text(x, -len(part.numbers) * STEP + 0.25, says, ha="center", va="top", fontsize=11)


def _draw_lesson(ax: Axes, card: Card, x: float, y: float) -> None:
    half, one = card.number in slides.HALF_DAY, card.number in slides.ONE_DAY
    frame = {"linewidth": 2.6 if half else 1.2, "linestyle": "-" if one else "--"}
    box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "black", **frame}
    name = "\n".join(textwrap.wrap(f"{card.number}  {card.name}", 26))
    needs = f", after {', '.join(card.needs)}" if card.needs else ""
    text = f"{name}\n{card.minutes} min{needs}"
    ax.text(x, y, text, ha="center", va="center", fontsize=11, bbox=box)


def alt(folder: Path) -> str:
    """One line for those who do not see the picture."""
    known = cards(folder)
    parts = (f"{p.title}: {', '.join(f'{n} {known[n].name}' for n in p.numbers)}" for p in PARTS)
    return "; ".join(parts) + ". Bold frames: half a day; solid: one day; dashed: two days"


def main() -> None:
    """Draw it into the file that the command line names."""
    folder = Path("notebooks")
    course_map(folder).savefig(Path(sys.argv[1]), dpi=110, metadata={"Software": None})
    print(alt(folder))


if __name__ == "__main__":
    main()
