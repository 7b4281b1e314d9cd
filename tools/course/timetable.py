"""Timetables with a clock, from a plan of what a class does and the lessons' own minutes.

    python -m tools.course.timetable        # course/timetables.toml → course/timetables.md

Invariant: no minute is written down twice. A section's are those of the lesson's page, an
exercise's its limit in the notebook; a part of the steps of *Build it* takes its share, rounded up.
A plan that names what is not there, or has no time left at the end of a day, is refused.
"""

import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import nbformat

from plamo_ref.errors import PlamoRefError
from tools.course.editions import number_of

SOURCE, TARGET = Path("course/timetables.toml"), Path("course/timetables.md")


class PlanError(PlamoRefError):
    """A plan that does not fit its lessons."""


@dataclass(frozen=True)
class Row:
    """A row of a lesson's page. `exercises`: the numbers that it is the time of; none: reading."""

    name: str
    minutes: int
    exercises: tuple[int, ...] = ()


@dataclass(frozen=True)
class Lesson:
    """What a lesson's notebook and page say of its time."""

    number: str
    title: str
    page: str
    rows: tuple[Row, ...]
    limits: tuple[int, ...]  # minutes of each exercise, from the first
    steps: tuple[int, ...]  # those of Build it that are no exercise

    @property
    def minutes(self) -> int:
        return sum(row.minutes for row in self.rows)


@dataclass(frozen=True)
class Item:
    """A line of a timetable."""

    begin: int  # minutes since midnight
    minutes: int
    what: str
    done: str = ""
    left: str = ""


@dataclass(frozen=True)
class Cut:
    """A cut of the course: its days, and the lessons in the order of the plan."""

    title: str
    days: tuple[tuple[Item, ...], ...]
    lessons: tuple[str, ...]


def read_lesson(path: Path, page: Path) -> Lesson:
    """From the notebook and its page for the teacher."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    limits = tuple(int(n) for n in re.findall(r"up to (\d+) minutes$", text, re.MULTILINE))
    steps = re.findall(r"^### Step (\d+)\. (?!Exercise)", text, re.MULTILINE)
    said = page.read_text(encoding="utf-8")
    found = re.findall(r"^\| ([^|*]+) \| (\d+) \|$", said, re.MULTILINE)
    rows = tuple(Row(name, int(n), _exercises(name, len(limits))) for name, n in found)
    title = re.search(r"^# (.*)$", said, re.MULTILINE)
    return Lesson(
        number_of(path), title[1] if title else "", page.name, rows, limits, tuple(map(int, steps))
    )


def _exercises(row: str, count: int) -> tuple[int, ...]:
    """Numbers in the name of a row: "7 exercises" are all, "6 exercises 1 to 4" four."""
    if "exercise" not in row:
        return ()
    found = re.search(r"exercises? (\d+)(?: (?:to|and) (\d+))?", row)
    if found is None:
        return tuple(range(1, count + 1))
    return tuple(range(int(found[1]), int(found[2] or found[1]) + 1))


def in_class(lesson: Lesson, entry: Mapping[str, Any], begin: int) -> Item:
    """What of a lesson is done, how long that takes, and what is left out."""
    steps = tuple(entry.get("steps", lesson.steps))
    chosen, leave = tuple(entry.get("exercises", ())), tuple(entry.get("leave", ()))
    known = tuple(range(1, len(lesson.limits) + 1))
    absent = [row for row in leave if not any(r.name.startswith(row) for r in lesson.rows)]
    if absent or not {*steps} <= {*lesson.steps} or not {*chosen} <= {*known}:
        raise PlanError(
            f"lesson {lesson.number}: {dict(entry)}; it has the steps {lesson.steps}, the "
            f"exercises {known} and the rows {[row.name for row in lesson.rows]}"
        )
    minutes, left = 0, []
    for row in lesson.rows:
        if row.exercises:
            minutes += sum(lesson.limits[n - 1] for n in row.exercises if n in chosen)
        elif row.name.startswith(leave):
            left.append(row.name)
        elif "build" in row.name and lesson.steps:
            minutes += math.ceil(row.minutes * len(steps) / len(lesson.steps))
        else:
            minutes += row.minutes
    done = [_counted("step", steps) if steps != lesson.steps else "", _counted("exercise", chosen)]
    left = [
        _counted("step", [n for n in lesson.steps if n not in steps]),
        _counted("exercise", [n for n in known if n not in chosen]),
        *left,
    ]
    what = f"[{lesson.title}](lessons/{lesson.page})"
    return Item(begin, minutes, what, *("; ".join(filter(None, each)) for each in (done, left)))


def _counted(what: str, numbers: Sequence[int]) -> str:
    """("step", [1, 2, 4]) → "steps 1, 2, 4"."""
    plural = "s" if len(numbers) > 1 else ""
    return f"{what}{plural} {', '.join(map(str, numbers))}" if numbers else ""


def read_cuts(root: Path) -> dict[str, Cut]:
    """The cuts of `timetables.toml`, with the minutes of the lessons under `root`.

    Raises:
        PlanError: a plan names a lesson, step, exercise or row that is not there, or a day has less
            than `least` minutes for what ends it.
    """
    lessons = {
        number_of(path): read_lesson(path, root / "course" / "lessons" / f"{path.stem}.md")
        for path in sorted((root / "notebooks").glob("*.ipynb"))
    }
    plans = tomllib.loads((root / SOURCE).read_text(encoding="utf-8"))
    return {name: _cut(name, plan, lessons) for name, plan in plans.items()}


def _cut(name: str, plan: Mapping[str, Any], lessons: Mapping[str, Lesson]) -> Cut:
    days: list[list[Item]] = []
    taught: list[str] = []
    now = 0
    for entry in plan["plan"]:
        if "start" in entry:
            days.append([])
            now = _minutes(entry["start"])
            continue
        if "lesson" in entry:
            taught.append(entry["lesson"])
            if entry["lesson"] not in lessons:
                raise PlanError(f"{name}: no lesson {entry['lesson']}")
            item = in_class(lessons[entry["lesson"]], entry, now)
        elif "until" in entry:
            item = Item(now, _minutes(entry["until"]) - now, entry["what"])
            if item.minutes < entry["least"]:
                raise PlanError(
                    f"{name}, day {len(days)}: {item.minutes} minutes are left until "
                    f"{entry['until']} for {item.what!r}, expected {entry['least']}: leave more out"
                )
        else:
            item = Item(now, entry["pause"], entry["what"])
        days[-1].append(item)
        now += item.minutes
    return Cut(plan["title"], tuple(map(tuple, days)), tuple(taught))


def _minutes(said: str) -> int:
    hours, minutes = said.split(":")
    return 60 * int(hours) + int(minutes)


def clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


def page(cuts: Mapping[str, Cut]) -> str:
    """The tables of all cuts, as Markdown."""
    return "\n".join(line for cut in cuts.values() for line in _table(cut)).rstrip() + "\n"


def _table(cut: Cut) -> Iterator[str]:
    yield f"## {cut.title}"
    yield ""
    for number, day in enumerate(cut.days, start=1):
        if len(cut.days) > 1:
            yield f"### Day {number}"
            yield ""
        yield "| time | min | what | of *Build it* and of the exercises | left out |"
        yield "|---|---|---|---|---|"
        for item in day:
            said = (clock(item.begin), item.minutes, item.what, item.done, item.left)
            yield "| " + " | ".join(map(str, said)) + " |"
        end = clock(day[-1].begin + day[-1].minutes)
        yield f"| {end} | **{sum(item.minutes for item in day)}** | end | | |"
        yield ""


_MARKS = re.compile(r"(<!-- timetables: [^\n]* -->\n).*?(<!-- end of timetables -->)", re.DOTALL)


def written(text: str, cuts: Mapping[str, Cut]) -> str:
    """The page with its tables made anew; what stands around them stays."""
    return _MARKS.sub(lambda marks: f"{marks[1]}\n{page(cuts)}\n{marks[2]}", text)


@click.command(help=__doc__)
def main() -> None:
    cuts = read_cuts(Path())
    TARGET.write_text(written(TARGET.read_text(encoding="utf-8"), cuts), encoding="utf-8")
    for name, cut in cuts.items():
        click.echo(f"{name}: {len(cut.lessons)} lessons, {len(cut.days)} days")


if __name__ == "__main__":
    main()
