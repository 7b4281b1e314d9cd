"""Restart points: nothing of a lesson is lost, and whoever begins in the middle can go on.

Invariant tested: the code of a restart is the lesson's, answered in front of the point and open
behind it; that is read for all points, and three of them are run.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from tools.course import editions, restart
from tools.course.editions import exercises, number_of, student
from tools.course.restart import points

ROOT = Path(__file__).parents[2]
LESSONS = {number_of(path): path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_of(cells: list[NotebookNode]) -> list[str]:
    return [cell.source for cell in cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", LESSONS.values(), ids=lambda path: path.stem)
def test_a_restart_is_the_lesson_with_the_first_part_in_one_cell(path: Path) -> None:
    lesson = read(path)
    known, wanted = exercises(lesson), student(lesson).cells
    found = list(points(lesson))
    numbers = [p.name.partition("_")[2] for p in found if p.name.startswith("section")]
    assert numbers == [f"{n:02}" for n in range(3, 3 + len(numbers))], "sections are counted"
    assert len(found) - len(numbers) == len(known) >= 2
    for point in found:
        edition = restart.restart(lesson, point)
        nbformat.validate(edition)
        _, catch_up, _, begins, *rest = edition.cells
        assert begins.source.lstrip("# ").startswith(point.heading)
        assert code_of(rest) == code_of(wanted[point.cell :])
        behind, left = [], catch_up.source
        for source in code_of(wanted[: point.cell]):
            before, _, left = left.partition(source)
            behind.append(before)
        done = [e for e in known if e.stub.source in catch_up.source]
        assert all(e.solution in catch_up.source for e in done)
        assert all(e.solution not in "\n".join(code_of(rest)) for e in known)
        assert left == "\ncaught_up = True", "and nothing else"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make student` writes."""
    place = tmp_path_factory.mktemp("student")
    editions.write_students(ROOT, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        done = CliRunner().invoke(restart.main, [str(place)])
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture(scope="module")
def kernel(folder: Path) -> Iterator[AsyncKernelManager]:
    """One for all, as in test_editions.py."""
    manager = AsyncKernelManager(kernel_name="python3")
    yield manager
    asyncio.run(manager.shutdown_kernel(now=True))


@pytest.mark.parametrize(
    ("name", "after"), [("02_exercise_3", 2), ("05_section_08", 1), ("08b_exercise_2", 2)]
)
def test_whoever_restarts_can_go_on(
    folder: Path, kernel: AsyncKernelManager, name: str, after: int
) -> None:
    """The catch-up cell, and the next cells, of which the last is a check."""
    path = folder / "restart" / f"{name}.ipynb"
    notebook = read(path)
    last = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"][1 + after]
    notebook.cells = [new_code_cell("%reset -f"), *notebook.cells[: last + 1]]
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, km=kernel, timeout=300, resources=where)
    client.execute()
    if client.kc is not None:
        client.kc.stop_channels()
    _, catch_up, caught_up, *rest = (c for c in notebook.cells if c.cell_type == "code")
    assert catch_up.outputs == []
    assert caught_up.outputs[0].text == "caught up: True\n"
    said = "".join(output.get("text", "") for output in rest[-1].outputs)
    assert said.startswith(("✓", "○")), said


def test_every_restart_has_a_name_of_its_own(folder: Path) -> None:
    names = [path.name for path in (folder / "restart").glob("*.ipynb")]
    assert len(names) == sum(len(list(points(read(path)))) for path in LESSONS.values())
