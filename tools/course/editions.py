"""Editions of a lesson, all made from the one notebook that is kept.

    student     the folded solutions are taken out, the outputs too; hints and self-checks stay
    rehearsal   for a test: at each exercise the stub, wrong answers, then the solution are tried

Invariant: the source is the student's edition plus what stands in the solutions' folds; no code
cell differs. Tags say which cell is what (the gate demands them): `exercise` is the stub,
`self-check` the code cell after it, `solution` the Markdown cell with hints and folded solution.

    python -m tools.course.editions build/student
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import click
import nbformat
from nbformat import NotebookNode

from plamo_ref.errors import PlamoRefError
from tools.course.needed import needed

TAGS = ("exercise", "self-check", "solution")  # in the order in which they stand
_FOLDED = re.compile(r"\n*<details><summary>Solution</summary>\n(.*?)\n</details>", re.DOTALL)
_CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


class EditionError(PlamoRefError):
    """A lesson whose exercises are not tagged as they should be."""


@dataclass(frozen=True)
class Exercise:
    """One exercise: its three cells and the code of its solution."""

    number: int  # from 1, in the order of the lesson
    stub: NotebookNode
    check: NotebookNode
    help: NotebookNode

    @property
    def solution(self) -> str:
        folded = _FOLDED.findall(self.help.source)
        code = [block for text in folded for block in _CODE.findall(text)]
        if len(folded) != 1 or len(code) != 1:
            raise EditionError(
                f"cell {self.help.id}: {len(folded)} folded solutions with {len(code)} blocks of "
                "Python, expected one with one"
            )
        return str(code[0]).rstrip()


def number_of(lesson: Path | str) -> str:
    """What a lesson is called by: "08b" of 08b_your_engine.ipynb."""
    return Path(lesson).name.partition("_")[0]


def tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def exercises(notebook: NotebookNode) -> list[Exercise]:
    """The exercises in their order.

    Raises:
        EditionError: the tagged cells do not come in threes: exercise, self-check, solution.
    """
    marked = [(tag, cell) for cell in notebook.cells for tag in tags(cell) if tag in TAGS]
    for place, (tag, cell) in enumerate(marked):
        if tag != TAGS[place % 3]:
            raise EditionError(f"cell {cell.id}: tagged {tag}, expected {TAGS[place % 3]} here")
    if len(marked) % 3:
        raise EditionError(f"the last exercise has no cell tagged {TAGS[len(marked) % 3]}")
    cells = [cell for _, cell in marked]
    return [Exercise(i // 3 + 1, *cells[i : i + 3]) for i in range(0, len(cells), 3)]


def student(notebook: NotebookNode) -> NotebookNode:
    """The lesson without its solutions and without outputs."""
    edition = deepcopy(notebook)
    for exercise in exercises(edition):
        assert exercise.solution  # raises when there is nothing to take out
        exercise.help.source = _FOLDED.sub("", exercise.help.source)
    for cell in edition.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return edition


def rehearsal(
    notebook: NotebookNode, wrong_answers: Mapping[int, Sequence[str]] | None = None
) -> NotebookNode:
    """What the exercises of a lesson need of it, with every exercise answered several times over.

    After the stub and its check come, each as two cells `exN.K` and `exN.K-check`, the wrong
    answers (K from 1; their checks are to fail) and at the end the solution (K is 0).
    """
    edition = deepcopy(notebook)
    found = {exercise.check.id: exercise for exercise in exercises(edition)}
    cells, last = [], 0
    for cell in edition.cells:
        cells.append(cell)
        if cell.id not in found:
            continue
        exercise = found[cell.id]
        wrong = (wrong_answers or {}).get(exercise.number, ())
        for number, answer in [*enumerate(wrong, start=1), (0, exercise.solution)]:
            cells += _answered(exercise, number, answer)
        last = len(cells)
    edition.cells = needed(cells[:last])
    return edition


def _answered(exercise: Exercise, number: int, answer: str) -> list[NotebookNode]:
    """The stub again, for what it prepares; then the answer in its place; then the check."""
    name = f"ex{exercise.number}.{number}"
    tried, check = deepcopy(exercise.stub), deepcopy(exercise.check)
    tried.id, tried.source = name, f"{exercise.stub.source}\n\n\n{answer}"
    check.id = f"{name}-check"
    if number:
        check.metadata["tags"] = ["raises-exception"]
    return [tried, check]


# --- files ----------------------------------------------------------------------------------------

_BESIDE = {
    "notebooks/recorded": "recorded",
    "tests/golden": "../tests/golden",
    "plamo_ref": "../plamo_ref",  # lesson 00's map reads the files, all link to them
}
_NOT_READ = shutil.ignore_patterns("__pycache__", "models")


def write_students(root: Path, folder: Path) -> list[Path]:
    """The student's edition of every lesson under `root`, with the files that lessons read."""
    place = folder / "notebooks"
    if folder.exists():
        shutil.rmtree(folder)
    place.mkdir(parents=True)
    for source, target in _BESIDE.items():
        shutil.copytree(root / source, place / target, ignore=_NOT_READ)
    written = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        written.append(place / path.name)
        nbformat.write(student(nbformat.read(path, as_version=4)), written[-1])
    return written


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    written = write_students(Path(), folder)
    click.echo(f"{len(written)} lessons without solutions in {folder / 'notebooks'}")


if __name__ == "__main__":
    main()
