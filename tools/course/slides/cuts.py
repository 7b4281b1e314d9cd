"""A deck a cut: the day's agenda, each lesson with the address of its deck, breaks with a clock.

Invariant: times, minutes and what is left out are those of course/timetables.md; a lesson's deck
that is opened from here skips the slides of what is left out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from tools.course.slides.layout import Box, Clock, Prose, Slide, placed

_CUT = re.compile(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_DAY = re.compile(r"^### (Day \d+)$", re.MULTILINE)
_ROW = re.compile(r"^\| (\d\d:\d\d) \| (\d+) \| ([^|]+) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
_LESSON = re.compile(r"\[(.+?)\]\(lessons/(.+?)\.md\)")
_PAUSE = re.compile(r"break|lunch", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """A line of a timetable."""

    time: str
    minutes: int
    what: str  # Markdown; a lesson is a link to its page
    done: str
    left: str

    @property
    def title(self) -> str:
        return _LESSON.sub(r"\1", self.what)

    @property
    def stem(self) -> str:
        """Of the lesson's files; empty where it is no lesson."""
        found = _LESSON.search(self.what)
        return found[2] if found else ""


def cuts(timetables: str) -> dict[str, dict[str, list[Entry]]]:
    """The days of each cut, by title; a cut of one day has a day without a name."""
    found: dict[str, dict[str, list[Entry]]] = {}
    for title, text in _CUT.findall(timetables):
        names = _DAY.findall(text) or [""]
        parts = _DAY.split(text)[2::2] if names != [""] else [text]
        days = {
            name: [
                Entry(t, int(n), *(cell.strip() for cell in rest))
                for t, n, *rest in _ROW.findall(part)
            ]
            for name, part in zip(names, parts, strict=True)
        }
        if any(days.values()):
            found[title] = days
    return found


def slides_of(title: str, days: Mapping[str, list[Entry]]) -> list[Slide]:
    """The running order of a cut."""
    slides = []
    for day, entries in days.items():
        slides.append(_agenda(f"{title}, {day}" if day else title, entries))
        for number, entry in enumerate(entries):
            after = entries[number + 1] if number + 1 < len(entries) else None
            slides.append(_pause(entry, after) if _PAUSE.search(entry.what) else _entry(entry))
    return slides


def _agenda(heading: str, entries: list[Entry]) -> Slide:
    half = -(-len(entries) // 2) if len(entries) > 12 else len(entries)
    rows = [f"| {e.time} | {e.title} |" for e in entries]
    rows += ["| | |"] * (2 * half - len(rows) if half < len(entries) else 0)
    beside = (
        zip(rows[:half], rows[half:], strict=True)
        if half < len(entries)
        else ((r, "") for r in rows)
    )
    body = "\n".join(left + right.removeprefix("|") for left, right in beside)
    columns = 4 if half < len(entries) else 2
    head = "|" + " |" * columns + "\n|" + "---|" * columns
    slide = Slide(heading, [Prose(f"{head}\n{body}")])
    placed(slide)
    return slide


def _entry(entry: Entry) -> Slide:
    boxes: list[Box] = [Prose(f"**{entry.minutes} minutes**, from {entry.time}")]
    if entry.stem:
        boxes.append(Prose(f"[The slides]({entry.stem}.html?without={quote(entry.left)})"))
    boxes += [Prose(f"**In class:** {entry.done}")] if entry.done else []
    boxes += [Prose(f"**At home:** {entry.left}")] if entry.left else []
    slide = Slide(entry.title if entry.stem else entry.title[:1].upper() + entry.title[1:], boxes)
    placed(slide)
    return slide


def _pause(entry: Entry, after: Entry | None) -> Slide:
    boxes: list[Box] = (
        [Prose(f"We go on at **{after.time}** with **{after.title}**.")] if after else []
    )
    boxes.append(Clock(entry.minutes))
    slide = Slide(entry.what.capitalize(), boxes, kind="pause")
    placed(slide)
    return slide
