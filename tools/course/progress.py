"""Who is where: a table of the files that `PLAMO_PROGRESS` made self-checks write.

    python -m tools.course.progress FOLDER                # one file a person, NAME.jsonl

Invariant: it reads the folder and the lessons, nothing else; a person is what the file is called,
and an exercise counts as done once its check has passed, whatever was tried later.
"""

import ast
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import nbformat
from nbformat import NotebookNode

from tools.course.editions import exercises, number_of

MARKS = {"passed": "✓", "wrong": "✗", "open": "○"}
Exercises = dict[str, tuple[str, int]]  # name of a check → its lesson and exercise


@dataclass(frozen=True)
class Person:
    """What somebody's checks said: name of a check → state; and the check that came last."""

    name: str
    said: dict[str, str]
    last: str
    at: str  # "10:42"


def check_names(notebook: NotebookNode) -> Iterator[str]:
    """The name under which each exercise's self-check reports, in the lesson's order."""
    for exercise in exercises(notebook):
        for node in ast.walk(ast.parse(exercise.check.source)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id in ("check_exercise", "check_kernel"):
                yield ast.literal_eval(node.args[0])


def exercises_of(root: Path) -> Exercises:
    """All exercises under `root`, by the name of their check."""
    found: Exercises = {}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        names = check_names(nbformat.read(path, as_version=4))
        found |= {name: (number_of(path), i) for i, name in enumerate(names, start=1)}
    return found


def read_person(path: Path, known: Iterable[str]) -> Person | None:
    """None where nothing of the lessons was noted yet; lines that are none of ours are left out."""
    said: dict[str, str] = {}
    last = at = ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            check, state, when = entry["check"], entry["state"], entry["at"]
        except (ValueError, KeyError, TypeError):
            continue  # half a line: somebody is writing it
        if check in known and state in MARKS:
            said[check] = "passed" if said.get(check) == "passed" else state
            last, at = check, str(when)
    return Person(path.stem, said, last, at) if said else None


def table(people: Sequence[Person], known: Exercises) -> str:
    """As Markdown: a row a person, a column for each lesson that somebody has begun."""
    begun = sorted({known[check][0] for person in people for check in person.said})
    lines = [
        "| " + " | ".join(["name", *begun, "last"]) + " |",
        "|" + "---|" * (len(begun) + 2),
    ]
    for person in sorted(people, key=lambda person: person.name):
        marks = dict.fromkeys(begun, "")
        for check, (lesson, _) in known.items():
            if lesson in marks:
                marks[lesson] += MARKS.get(person.said.get(check, ""), "·")
        lesson, exercise = known[person.last]
        where = f"{lesson}, exercise {exercise}, {person.at}"
        lines.append("| " + " | ".join([person.name, *marks.values(), where]) + " |")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, exists=True, path_type=Path))
def main(folder: Path) -> None:
    known = exercises_of(Path())
    found = (read_person(path, known) for path in sorted(folder.glob("*.jsonl")))
    people = [person for person in found if person is not None]
    click.echo(table(people, known) if people else f"{folder}: no progress yet in any *.jsonl")


if __name__ == "__main__":
    main()
