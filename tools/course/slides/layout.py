"""Where things stand on a slide: which font, above or beside, and on how many slides.

Invariant: code and printed text have SMALLEST to LARGEST px of a screen of 1280 × 720, a picture
keeps its proportions, and what does not fit goes to the next slide. Text is measured in DejaVu, the
widest font that a browser is likely to take, so that in another it fits as well.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from textwrap import wrap
from typing import TypeGuard

from matplotlib import font_manager
from PIL import ImageFont

from tools.course.slides.cells import Code, Picture, Said, Shown, Text
from tools.course.slides.prose import plain_text

WIDTH, HEIGHT = 1184, 572  # of a slide's body, in px; under a heading and above the foot
TALL = 650  # of a body whose heading stands in the left column
LARGEST, SMALLEST = 28, 18
CROWDED = 20  # least size where a slide has the code of two cells
PROSE = (28, 24, 22, 20)
LARGE_PROSE = 22  # least size where two beats share a slide
# Of code and prose, in the order in which they are tried: neither is made small for the other.
SIZES = sorted(
    product(range(LARGEST, SMALLEST - 1, -2), PROSE),
    key=lambda pair: (min(pair), sum(pair)),
    reverse=True,
)
GAP = 14
MONO = 0.603  # of the font's size, a character's width
LINE = 1.3  # of the font's size, a line of code
READABLE = 1.0  # least scale of a figure, whose smallest text has 11 pt
LARGEST_SCALE = 1.8


@dataclass(frozen=True)
class Prose:
    """A block of Markdown."""

    markdown: str


@dataclass(frozen=True)
class Clock:
    """A countdown."""

    minutes: int


Box = Prose | Code | Said | Text | Clock


@dataclass
class Slide:
    """A heading, boxes in one column, a picture below or beside them, and notes."""

    heading: str  # Markdown
    boxes: list[Box] = field(default_factory=list)
    picture: Picture | None = None
    scale: float = 1.0  # of the picture
    left: int = 0  # px of the column beside the picture; 0: it stands below
    tall: bool = False  # the heading is in that column
    code_size: int = LARGEST
    prose_size: int = PROSE[0]
    notes: str = ""  # HTML
    kind: str = ""  # a class for its looks
    where: str = ""  # the section, for the foot
    part: str = ""  # "step 2", "exercise 1", "agenda", "break": what a cut may leave out
    row: str = ""  # of the page's minutes, where one row is the whole section
    span: tuple[int, int] | None = None  # minutes of the lesson
    count: tuple[int, int] = (1, 1)  # this slide of so many with its heading


# --- measuring ------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 100)


@lru_cache(maxsize=4096)
def _em(character: str) -> float:
    """Width of a character, in sizes of the font."""
    return 1.0 if character > "\u2e7f" else _font().getlength(character) / 100


def em(text: str) -> float:
    return 1.03 * sum(map(_em, text))


def rows(text: str, width: float) -> int:
    """Lines that a paragraph takes; `width` in sizes of the font."""
    count, used = 1, 0.0
    # Japanese may break anywhere.
    for word in re.findall(r"[\u2e80-\uffff]|[^\s\u2e80-\uffff]+\s?", text):
        if used and used + em(word.rstrip()) > width:
            count, used = count + 1, 0.0
        used += em(word)
    return count


def height(box: Box, width: float, code: int, prose: int) -> float:
    """px of a box in a column of `width` px."""
    if isinstance(box, Clock):
        return 0  # it stands beside
    if isinstance(box, Code):
        return len(box.lines) * code * LINE + 24
    if isinstance(box, Said):
        columns = max(1, int((width - 24) / (MONO * code)))
        lines = sum(_broken(line, columns) for line in box.lines)
        return lines * code * LINE + 12
    markdown = box.markdown
    if _is_listing(box):
        return len(markdown.strip().splitlines()) * code * LINE + 24
    if markdown.startswith("|"):
        return _table_height(markdown, width, prose)
    if re.match(r"[-*] |\d+\. ", markdown):
        items = re.split(r"\n(?=[-*] |\d+\. )", markdown)
        return sum(rows(plain_text(i), (width - 40) / prose) * prose * 1.4 + 8 for i in items)
    extra = 40 if markdown.startswith((">", "$$")) else 0
    return rows(plain_text(markdown), (width - extra) / prose) * prose * 1.4


def _broken(line: str, columns: int) -> int:
    """Lines that a printed line takes, broken at its blanks."""
    if _columns(line) <= columns:
        return 1
    return len(wrap(line, columns * len(line) // _columns(line), drop_whitespace=False))


def _table_height(markdown: str, width: float, prose: int) -> float:
    lines = [line for line in markdown.splitlines() if not re.match(r"\|[-| :]+\|$", line)]
    cells = [[plain_text(c.strip()) for c in line.strip("|").split("|")] for line in lines]
    count = max(map(len, cells))
    wide = [
        max((em(r[i]) * prose + 24 for r in cells if i < len(r)), default=0) for i in range(count)
    ]
    if sum(wide) <= width:
        return len(cells) * (prose * 1.4 + 10)
    share = (width / count - 24) / prose
    return sum(max(rows(c, share) for c in row) * prose * 1.4 + 10 for row in cells)


def needed(boxes: Sequence[Box], width: float, code: int, prose: int) -> float:
    tall = [height(box, width, code, prose) for box in boxes]
    return sum(tall) + GAP * (len(tall) - 1 if tall else 0)


def _widest(boxes: Sequence[Box]) -> int:
    """Columns of the longest line of code; a line of code is never broken."""
    lines = [line for box in boxes if isinstance(box, Code) for line in box.lines]
    lines += [line for box in boxes if _is_listing(box) for line in box.markdown.splitlines()]
    return max(map(_columns, lines), default=0)


def _columns(line: str) -> int:
    """Of a monospaced font; a Japanese character takes 1.7."""
    return len(line) + len(re.findall(r"[\u2e80-\uffff]", line)) * 7 // 10 + 1


def _is_listing(box: Box) -> TypeGuard[Prose]:
    """A fence or an indented formula."""
    return isinstance(box, Prose) and box.markdown.startswith(("```", "    "))


def fitting(boxes: Sequence[Box], width: float, room: float) -> tuple[int, int] | None:
    """The largest sizes of code and prose with which the boxes fit; None if none do."""
    widest = _widest(boxes) * MONO
    for code, prose in SIZES:
        if widest * code + 28 <= width and needed(boxes, width, code, prose) <= room:
            return code, prose
    return None


# --- placing --------------------------------------------------------------------------------------


def placed(slide: Slide, room: float = HEIGHT) -> bool:
    """Choose sizes and the picture's place; False if it does not fit at all."""
    picture = slide.picture
    if picture is None:
        sizes = fitting(slide.boxes, WIDTH, room)
        if sizes:
            slide.code_size, slide.prose_size = sizes
        return sizes is not None
    best = None
    for left, tall, sizes, width, rest in _arrangements(slide, room):
        scale = min(width / picture.width, rest / picture.height, LARGEST_SCALE)
        if scale > 0 and (best is None or scale > best[0] * 1.08):
            best = (scale, left, tall, sizes)
    if best is None:
        return False
    slide.scale, slide.left, slide.tall = best[:3]
    slide.code_size, slide.prose_size = best[3]
    return True


Arrangement = tuple[int, bool, tuple[int, int], float, float]


def _arrangements(slide: Slide, room: float) -> Iterator[Arrangement]:
    """Ways to share the body: column or 0, heading inside, sizes, and px for the picture."""
    for code in range(LARGEST, SMALLEST - 1, -2):
        rest = room - needed(slide.boxes, WIDTH, code, PROSE[1]) - GAP
        if _widest(slide.boxes) * MONO * code + 28 <= WIDTH and rest > 120:
            yield 0, False, (code, PROSE[1]), WIDTH, rest
            break
    for left in (400, 480, 560, 640, 720):
        if sizes := fitting(slide.boxes, left, room):
            yield left, False, sizes, WIDTH - left - 32, room
        heading = rows(plain_text(slide.heading), left / 32) * 44 + 20
        if room == HEIGHT and (sizes := fitting(slide.boxes, left, TALL - heading)):
            yield left, True, sizes, WIDTH - left - 32, TALL


def readable(slide: Slide) -> bool:
    """Whether its picture is as large as it has to be, or nearly as large as it would be alone."""
    if slide.picture is None:
        return True
    alone = Slide(slide.heading, [], slide.picture)
    placed(alone)
    return slide.scale >= min(READABLE, alone.scale)


def paged(
    heading: str, leads: Sequence[list[Box]], groups: Sequence[Sequence[Shown]]
) -> list[Slide]:
    """Slides of what a beat shows: a cell after the other, what it printed under its code.

    `leads`: texts to introduce it, the longest first; the longest is taken with which the first
    cell's code fits below.
    """
    slides = [Slide(heading)]
    for number, group in enumerate(groups):
        boxes: list[Box] = [box for box in group if not isinstance(box, Picture)]
        pictures = [box for box in group if isinstance(box, Picture)]
        for lead in [*leads, []] if number == 0 else [[]]:
            if added(slides[-1], [*lead, *boxes]):
                break
        else:
            slides += split(heading, boxes)
        for picture in pictures:
            if not added(slides[-1], [], picture):
                slides.append(Slide(heading, [], picture))
                placed(slides[-1])
    if not groups:
        slides = split(heading, leads[0])
    return [slide for slide in slides if slide.boxes or slide.picture]


def added(slide: Slide, boxes: Sequence[Box], picture: Picture | None = None) -> bool:
    """Put more on the slide if it stays readable; beside a picture that is a verdict or nothing."""
    if slide.picture is not None and (picture or not _are_verdicts(boxes)):
        return False
    more = Slide(slide.heading, [*slide.boxes, *boxes], picture or slide.picture)
    if not (placed(more) and readable(more)):
        return False
    codes = sum(isinstance(box, Code) for box in more.boxes)
    if codes > 1 and more.code_size < CROWDED and slide.boxes:
        return False
    slide.__dict__.update(more.__dict__)
    return True


def joined(slide: Slide, after: Slide) -> bool:
    """Put what `after` says under the code that it is about, if both stay large."""
    if after.picture or any(isinstance(box, Code) for box in after.boxes):
        return False
    if not any(isinstance(box, Said) for box in after.boxes):
        return False
    both = Slide(slide.heading, [*slide.boxes], slide.picture)
    if not added(both, after.boxes):
        return False
    if both.code_size < min(CROWDED, slide.code_size) or both.prose_size < LARGE_PROSE:
        return False
    both.notes = slide.notes
    slide.__dict__.update(both.__dict__)
    return True


def _are_verdicts(boxes: Sequence[Box]) -> bool:
    return bool(boxes) and all(isinstance(box, Said) and box.verdict for box in boxes)


def split(heading: str, boxes: Sequence[Box]) -> list[Slide]:
    """Boxes that fit together on new slides, in their order."""
    slides = [Slide(heading)]
    for box in boxes:
        if not added(slides[-1], [box]):
            slides.append(Slide(heading, [box]))
            placed(slides[-1])
    return [slide for slide in slides if slide.boxes]
