"""A lesson taken apart: headings with their texts and cells, exercises, what the kit adds.

Invariant: every cell of the notebook is in exactly one beat, and no folded hint or solution is in
any; self-checks, which hold answers, are left out.
"""

import re
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from plamo_ref.errors import PlamoRefError
from tools.course.editions import exercises, number_of, tags
from tools.course.quiz import FOLDER as QUIZZES
from tools.course.quiz import Question, read_questions
from tools.course.wrong_answers import FOLDER, read_answers

_HEADING = re.compile(r"^(#{1,3}) +(.*)$", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_FOLD = re.compile(r"<details>.*?</details>", re.DOTALL)
_HINT = re.compile(r"<summary>Hint \d</summary>(.*?)</details>", re.DOTALL)
_ROW = re.compile(r"^\| (?!section|-|\*)([^|]+?) *\| *(\d+) *\|", re.MULTILINE)


class SlideError(PlamoRefError):
    """A lesson of which no deck can be made; the message names cell and cure."""


@dataclass
class Beat:
    """A text and the cells that it introduces."""

    text: str
    cells: list[NotebookNode] = field(default_factory=list)


@dataclass
class Part:
    """A heading with its beats, up to the next heading."""

    level: int
    title: str  # as Markdown
    section: str  # the title of the H2 that it stands under, or of itself
    beats: list[Beat] = field(default_factory=list)
    pause: int = 0  # minutes of a break before it

    @property
    def number(self) -> int:
        """Of the section; 0 above the first."""
        found = re.match(r"\d+", self.section)
        return int(found[0]) if found else 0

    @property
    def exercise(self) -> int | None:
        found = re.search(r"\bExercise (\d+)", self.title)
        return int(found[1]) if found else None

    @property
    def name(self) -> str:
        """What a timetable calls it: "step 2", "exercise 1"; empty for what it does not name."""
        step = re.match(r"Step (\d+)", self.title)
        return f"exercise {self.exercise}" if self.exercise else f"step {step[1]}" if step else ""

    @property
    def text(self) -> str:
        return "\n\n".join(beat.text for beat in self.beats).strip()


@dataclass(frozen=True)
class Help:
    """What the notes of an exercise say: two hints, and the mistakes that people make."""

    hints: tuple[str, ...]  # HTML
    mistakes: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """The instructor's page: rows of minutes, and its other parts as Markdown."""

    minutes: tuple[tuple[str, int], ...]
    parts: dict[str, str]

    def span(self, section: int) -> tuple[int, int] | None:
        """The minutes, from the lesson's beginning, in which a section is planned."""
        start, ends = 0, []
        for label, minutes in self.minutes:
            if section in _sections(label):
                ends += [start, start + minutes]
            start += minutes
        return (min(ends), max(ends)) if ends else None

    def row(self, section: int) -> str:
        """The label of the row that has the section's minutes; empty where several share it."""
        labels = [label for label, _ in self.minutes if section in _sections(label)]
        return labels[0] if len(labels) == 1 else ""


def _sections(label: str) -> range:
    """Those that a row of minutes is about: "8–9 package, measure"."""
    low, _, high = re.match(r"(\d+)(–(\d+))?", label).groups()  # type: ignore[union-attr]
    return range(int(low), int(high or low) + 1)


@dataclass(frozen=True)
class Lesson:
    """All that a deck is made of."""

    stem: str
    number: str
    parts: list[Part]
    help: dict[int, Help]
    page: Page
    quiz: tuple[Question, ...] = ()


def read(root: Path, path: Path) -> Lesson:
    """The lesson of a notebook, with its page, its wrong answers and its questions."""
    notebook = nbformat.read(path, as_version=4)
    answers = read_answers(root / FOLDER / f"{path.stem}.toml")
    helps = {}
    for exercise in exercises(notebook):
        n = exercise.number
        mistakes = tuple(a.mistake for a in answers if a.exercise == n)
        helps[n] = Help(tuple(h.strip() for h in _HINT.findall(exercise.help.source)), mistakes)
    page = _page((root / "course" / "lessons" / f"{path.stem}.md").read_text(encoding="utf-8"))
    quiz = tuple(read_questions(root / QUIZZES / f"{path.stem}.toml"))
    return Lesson(path.stem, number_of(path), parts_of(notebook), helps, page, quiz)


def _page(text: str) -> Page:
    parts = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    rows = _ROW.findall(parts.get("Minutes", ""))
    return Page(
        tuple((label, int(n)) for label, n in rows), {k: v.strip() for k, v in parts.items()}
    )


def parts_of(notebook: NotebookNode) -> list[Part]:
    """The headings of a lesson in their order, the title first."""
    found: list[Part] = []
    for cell in notebook.cells:
        pause = cell.metadata.get("slides", {}).get("break", 0)
        if cell.cell_type == "code":
            if "self-check" not in tags(cell):
                found[-1].beats[-1].cells.append(cell)
            continue
        for level, title, text in headed(_FOLD.sub("", cell.source)):
            if level:
                section = title if level < 3 else found[-1].section
                found.append(Part(level, title, section, [Beat(text)], pause))
                pause = 0
            elif text and found:
                found[-1].beats.append(Beat(text))
    return found


def headed(source: str) -> list[tuple[int, str, str]]:
    """Level, heading and text of each heading of a cell; what stands before has level 0."""
    # Fences keep their length but lose their "#", which would be headings.
    plain = _FENCE.sub(lambda fence: re.sub(r"\S", "x", fence[0]), source)
    starts = list(_HEADING.finditer(plain))
    first = starts[0].start() if starts else len(source)
    found = [(0, "", source[:first].strip())]
    for match, after in zip_longest(starts, starts[1:]):
        end = after.start() if after else len(source)
        title = source[match.start(2) : match.end(2)]
        found.append((len(match[1]), title, source[match.end() : end].strip()))
    return found
