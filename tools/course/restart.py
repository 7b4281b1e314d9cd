"""Restart points: a lesson from one of its sections or exercises on, for whoever fell behind.

    python -m tools.course.restart build/student       # of all lessons, into build/student/restart

A restart is a fresh notebook of the student's edition. All that stands in front of the point is in
*one* cell, the catch-up cell: quiet, with solutions in place of stubs. The rest is as it was.

Invariant: the code cells of a restart are those of the lesson, in their order; an exercise in front
of the point is answered by its solution, one behind it is open.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools.course.editions import exercises, number_of, student

FIRST = 3  # sections 1 and 2 are set-up and prediction: nothing to catch up with
_POINT = re.compile(r"^##+ (?:(\d+)\. |(?:.*\b)?Exercise (\d+) · )[^\n]*", re.MULTILINE)
_WAITS = re.compile(r"^ *(?:\w+ = )?await |^async with|= await ", re.MULTILINE)


@dataclass(frozen=True)
class Point:
    """Where a restart begins: at a heading, which may stand in the middle of a cell."""

    name: str  # "section_07", "exercise_2"
    heading: str  # without its #
    cell: int
    offset: int  # in the cell's text, as students have it


def points(notebook: NotebookNode) -> Iterator[Point]:
    """The sections from the third on and the exercises, in the lesson's order."""
    for place, cell in enumerate(student(notebook).cells):
        if cell.cell_type != "markdown":
            continue
        for found in _POINT.finditer(cell.source):
            section, exercise = found[1], found[2]
            if section and int(section) < FIRST:
                continue
            name = f"section_{int(section):02}" if section else f"exercise_{exercise}"
            yield Point(name, found[0].lstrip("# "), place, found.start())


def restart(notebook: NotebookNode, point: Point) -> NotebookNode:
    """The lesson from `point` on, behind a cell that does what stands in front of it."""
    edition = student(notebook)
    title = re.search(r"^# (.*)$", edition.cells[0].source, re.MULTILINE)
    first = new_markdown_cell(
        f"# {title[1] if title else 'The lesson'}\n\n"
        f"You begin at **{point.heading}**. The first cell does all that stands in front of it, "
        "exercises included, and shows nothing; it may take as long as the lesson's Run All.",
        id="restart",
    )
    cells = [first, new_code_cell(_catch_up(notebook, point), id="catch-up")]
    cells[-1].metadata["jupyter"] = {"source_hidden": True}
    cells.append(new_code_cell('print("caught up:", caught_up)', id="caught-up"))
    begins, *rest = edition.cells[point.cell :]
    begins.source = begins.source[point.offset :]
    return new_notebook(cells=[*cells, begins, *rest], metadata=edition.metadata)


def _catch_up(notebook: NotebookNode, point: Point) -> str:
    solutions = {exercise.stub.id: exercise.solution for exercise in exercises(notebook)}
    code = []
    for cell in notebook.cells[: point.cell]:
        if cell.cell_type == "code":
            code.append(cell.source)
            code += [solutions[cell.id]] if cell.id in solutions else []
    # `%%capture` knows no await, so a lesson with one shows what it says.
    quiet = [] if any(map(_WAITS.search, code)) else ["%%capture"]
    return "\n".join([*quiet, "%cd -q ../notebooks", "\n\n".join(code), "caught_up = True"])


def write(root: Path, folder: Path) -> list[Path]:
    """Every restart of every lesson under `root`, beside the folder in which lessons find files."""
    place = folder / "restart"
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    written = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        for point in points(notebook):
            written.append(place / f"{number_of(path)}_{point.name}.ipynb")
            nbformat.write(restart(notebook, point), written[-1])
    return written


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    written = write(Path(), folder)
    click.echo(f"{len(written)} restart points in {folder / 'restart'}")


if __name__ == "__main__":
    main()
