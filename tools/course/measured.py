"""The lessons in numbers: how long, how large, how well their self-checks speak.

Invariant: everything is measured here and now, from the notebooks as they are; a lesson that raises
has no row. Seconds are those of a processor core, so that other work on the machine adds nothing.

    python -m tools.course.measured course/measured.json

Lessons that are not asked for keep their row. The table goes into the README.md beside the file.
"""

import json
import platform
import re
import resource
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import click
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from tools.course.editions import exercises, number_of
from tools.course.wrong_answers import WrongAnswer, lessons, try_answers

CELL_SECONDS = 300


@dataclass(frozen=True)
class Measured:
    """One lesson."""

    lesson: str
    minutes: int  # as its card promises
    seconds: float  # of a core, for Run All
    cells: int
    code_cells: int
    words: int  # of Markdown
    kilobytes: float
    exercises: int
    wrong_answers: int
    named: int  # wrong answers whose mistake the self-check names


def measure(path: Path, answers: list[WrongAnswer]) -> Measured:
    notebook = nbformat.read(path, as_version=4)
    text = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    trials = try_answers(path, answers) if answers else []
    return Measured(
        lesson=path.stem,
        minutes=minutes_of(notebook),
        seconds=round(seconds_of(notebook, path.parent), 1),
        cells=len(notebook.cells),
        code_cells=sum(cell.cell_type == "code" for cell in notebook.cells),
        words=len(re.findall(r"[A-Za-z][\w'-]*", re.sub(r"<[^>]+>|`[^`]*`", " ", text))),
        kilobytes=round(path.stat().st_size / 1000, 1),
        exercises=len(exercises(notebook)),
        wrong_answers=len(answers),
        named=sum(trial.names_the_mistake for trial in trials),
    )


def minutes_of(notebook: NotebookNode) -> int:
    """The longest time that the card names."""
    found = re.search(r"(?:(\d+)\s*[-–]\s*)?(\d+)\s*min", notebook.cells[0].source)
    return int(found[2]) if found else 0


def seconds_of(notebook: NotebookNode, folder: Path) -> float:
    """Processor seconds of a kernel that runs all cells."""
    before = _children()
    where = {"metadata": {"path": str(folder.resolve())}}
    NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=where).execute()
    return _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(rows: list[Measured]) -> str:
    """As Markdown, with a line of sums."""
    lines = [
        "| lesson | minutes | seconds to run | cells (code) | words | kB | exercises "
        "| wrong answers named |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.lesson} | {row.minutes} | {row.seconds:.0f} | {row.cells} ({row.code_cells}) "
            f"| {row.words:,} | {row.kilobytes:.0f} | {row.exercises} "
            f"| {row.named} of {row.wrong_answers} |"
        )
    total = [sum(getattr(row, name) for row in rows) for name in ("minutes", "seconds", "words")]
    wrong, named = sum(r.wrong_answers for r in rows), sum(r.named for r in rows)
    lines.append(
        f"| **all** | {total[0]} | {total[1]:.0f} | {sum(r.cells for r in rows)} "
        f"({sum(r.code_cells for r in rows)}) | {total[2]:,} "
        f"| {sum(r.kilobytes for r in rows):.0f} | {sum(r.exercises for r in rows)} "
        f"| {named} of {wrong} |"
    )
    return "\n".join(lines)


_MARKS = re.compile(r"(<!-- measured: [^\n]* -->\n).*?(<!-- end of measured -->)", re.DOTALL)


def read(target: Path) -> list[Measured]:
    """The rows of an earlier run."""
    if not target.exists():
        return []
    content = json.loads(target.read_text(encoding="utf-8"))
    return [Measured(**row) for row in content["lessons"]]


def write(target: Path, rows: list[Measured]) -> None:
    """The rows with their origin, and the table into the README.md beside them."""
    content = {
        "machine": f"{platform.system()} {platform.machine()}, one core",
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "date": datetime.now(UTC).date().isoformat(),
        "lessons": [asdict(row) for row in rows],
    }
    target.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    readme = target.with_name("README.md")
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        text = _MARKS.sub(lambda marks: f"{marks[1]}{table(rows)}\n{marks[2]}", text)
        readme.write_text(text, encoding="utf-8")


@click.command(help=__doc__)
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("numbers", nargs=-1)
def main(target: Path, numbers: tuple[str, ...]) -> None:
    rows = {row.lesson: row for row in read(target)}
    found = lessons(Path())
    for path, answers in found:
        if not numbers or number_of(path) in numbers:
            rows[path.stem] = measure(path, answers)
            click.echo(f"{path.stem}: {rows[path.stem].seconds:.0f} s", err=True)
    kept = [rows[path.stem] for path, _ in found if path.stem in rows]
    write(target, kept)
    click.echo(table(kept))


if __name__ == "__main__":
    main()
