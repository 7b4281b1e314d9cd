"""Editions of the lessons: the student's is the source minus its solutions, and those are right.

Invariant tested: a stub is reported as open, a solution passes its self-check, and every wrong
answer is refused with the words that name its mistake.
"""

import asyncio
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools.course import editions, wrong_answers
from tools.course.editions import EditionError, exercises, rehearsal, student
from tools.course.wrong_answers import AnswerError, lessons, read_answers, try_answers

ROOT = Path(__file__).parents[2]
LESSONS = dict(lessons(ROOT))
FOLD = re.compile(r"<details><summary>Solution</summary>.*?</details>", re.DOTALL)
SOLUTION = "<details><summary>Solution</summary>\n\n```python\nx = 42\n```\n\nSo it is.\n</details>"


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def small_lesson(solution: str = SOLUTION) -> NotebookNode:
    """One exercise, and something after it that a rehearsal need not run."""
    cells = [
        new_code_cell("from plamo_ref.teaching import check_exercise", id="setup"),
        new_code_cell("x = ...", id="ex1", metadata={"tags": ["exercise"]}),
        new_code_cell(
            "check_exercise('the answer', x, 42, hint='six times seven', mistakes={'twice': 84})",
            id="ex1-check",
            metadata={"tags": ["self-check"]},
        ),
        new_markdown_cell(
            f"<details><summary>Hint 1</summary>look</details>\n{solution}\n\n### Next",
            id="ex1-help",
            metadata={"tags": ["solution"]},
        ),
        new_code_cell("1 / 0", id="later"),
    ]
    return new_notebook(cells=cells)


# --- the student's edition ------------------------------------------------------------------------


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_students_edition_is_the_source_minus_its_solutions(path: Path) -> None:
    source, edition = read(path), student(read(path))
    assert [c.id for c in edition.cells] == [c.id for c in source.cells]
    blanked = 0
    for before, after in zip(source.cells, edition.cells, strict=True):
        if before.cell_type == "code":
            assert (after.source, after.outputs) == (before.source, [])
        elif "solution" in before.metadata.get("tags", []):
            gaps = re.sub(r"\s+", "", FOLD.sub("", before.source))
            assert re.sub(r"\s+", "", after.source) == gaps
            assert len(re.findall("<summary>Hint", after.source)) == 2
            blanked += 1
        else:
            assert after.source == before.source
    assert blanked == len(exercises(source)) >= 2
    assert not FOLD.search("\n".join(c.source for c in edition.cells))


def test_everything_a_lesson_reads_lies_beside_the_students_edition(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    (folder / "notebooks").mkdir(parents=True)
    (folder / "notebooks" / "old.ipynb").write_text("{}", encoding="utf-8")
    for name in ("notebooks/recorded", "tests/golden"):
        shutil.copytree(ROOT / name, tmp_path / "clone" / name)
    (tmp_path / "clone" / "plamo_ref" / "models").mkdir(parents=True)
    (tmp_path / "clone" / "plamo_ref" / "batch.py").touch()
    nbformat.write(small_lesson(), tmp_path / "clone" / "notebooks" / "01_small.ipynb")
    written = editions.write_students(tmp_path / "clone", folder)
    assert [path.name for path in written] == ["01_small.ipynb"]
    assert "x = 42" not in written[0].read_text(encoding="utf-8")
    assert not (folder / "notebooks" / "old.ipynb").exists()
    assert list((folder / "tests" / "golden").glob("*/expected.safetensors"))
    assert list((folder / "notebooks" / "recorded").glob("*.json"))
    assert [path.name for path in (folder / "plamo_ref").iterdir()] == ["batch.py"]


def test_what_surrounds_a_solution_stays() -> None:
    edition = student(small_lesson())
    assert edition.cells[3].source == (
        "<details><summary>Hint 1</summary>look</details>\n\n### Next"
    )


@pytest.mark.parametrize("solution", ["", SOLUTION.replace("```python", "```"), SOLUTION * 2])
def test_a_lesson_without_one_clear_solution_is_refused(solution: str) -> None:
    with pytest.raises(EditionError, match=r"cell ex1-help: .* expected one with one"):
        student(small_lesson(solution))


def test_cells_out_of_order_are_named() -> None:
    lesson = small_lesson()
    lesson.cells[1], lesson.cells[2] = lesson.cells[2], lesson.cells[1]
    with pytest.raises(EditionError, match="cell ex1-check: tagged self-check, expected exercise"):
        exercises(lesson)
    with pytest.raises(EditionError, match="no cell tagged solution"):
        exercises(new_notebook(cells=small_lesson().cells[:3]))


# --- solutions and wrong answers ------------------------------------------------------------------


def test_a_rehearsal_tries_wrong_answers_then_the_solution_and_ends_there() -> None:
    edition = rehearsal(small_lesson(), {1: ["x = 41"]})
    ids = ["setup", "ex1", "ex1-check", "ex1.1", "ex1.1-check", "ex1.0", "ex1.0-check"]
    assert [cell.id for cell in edition.cells] == ids
    assert edition.cells[3].source == "x = ...\n\n\nx = 41"
    assert edition.cells[4].metadata["tags"] == ["raises-exception"]
    assert edition.cells[5].source == "x = ...\n\n\nx = 42"


@pytest.mark.parametrize(
    ("source", "stays"),
    [
        ("y = 3\nprint(y)", False),
        ("for y in range(3):\n    print(y)", False),
        ("print([size for size in range(3)])", False),  # a name of its own
        ("size = 3", True),  # mentioned in the exercise
        ("def size():\n    return 3", True),
        ("import numpy as size", True),
        ("with open('a') as size:\n    pass", True),
        ("fig, ax = figure()\nax.plot([3])\nshow(fig, 'a')", False),
        ("box.append(3)", True),
        ("for y in range(3):\n    box.of[0].append(y)", True),
        ("await engine.step()", True),
        ("box[0] = 3", True),
        ("y = [3]\ny[0] = 4", False),
        ("globals().update(size=3)", True),
        ("%cd ..", True),
    ],
)
def test_a_rehearsal_leaves_out_what_no_exercise_needs(source: str, stays: bool) -> None:
    lesson = small_lesson()
    lesson.cells[1].source = "x = size"
    lesson.cells.insert(1, new_code_cell(source, id="between"))
    ids = [cell.id for cell in rehearsal(lesson).cells]
    assert ids[:2] == (["setup", "between"] if stays else ["setup", "ex1"])
    lesson.cells[1].metadata["tags"] = ["raises-exception"]
    assert rehearsal(lesson).cells[1].id == "between"


def test_what_a_needed_cell_needs_stays() -> None:
    lesson = small_lesson()
    lesson.cells[1].source = "x = size"
    lesson.cells[1:1] = [
        new_code_cell("y = 3", id="first"),
        new_code_cell("size = y", id="then"),
        new_code_cell("y = 4", id="too-late"),
    ]
    ids = [cell.id for cell in rehearsal(lesson).cells]
    assert ids[:4] == ["setup", "first", "then", "ex1"]


def test_a_right_wrong_answer_and_an_unnamed_mistake_are_found(tmp_path: Path) -> None:
    lesson, data = tmp_path / "01_small.ipynb", tmp_path / "01_small.toml"
    nbformat.write(small_lesson(), lesson)
    entry = "[[exercise-1]]\nmistake = '{}'\nsays = '{}'\ncode = 'x = {}'\n"
    tried = [("double", "twice", 84), ("right", "no", 42), ("sum", "add", 13), ("open", "", "...")]
    data.write_text("".join(entry.format(*each) for each in tried), encoding="utf-8")
    trials = {trial.what: trial for trial in try_answers(lesson, read_answers(data))}
    assert {what: trial.holds for what, trial in trials.items()} == {
        "stub": True,
        "double": True,
        "right": False,
        "sum": True,
        "open": False,
        "solution": True,
    }
    assert [what for what, trial in trials.items() if trial.names_the_mistake] == ["double"]
    assert "Likely: twice" in trials["double"].verdict
    assert "Look at: six times seven" in trials["sum"].verdict


def test_wrong_answers_to_no_exercise_are_refused(tmp_path: Path) -> None:
    lesson, data = tmp_path / "01_small.ipynb", tmp_path / "01_small.toml"
    nbformat.write(small_lesson(), lesson)
    data.write_text("[[exercise-2]]\nmistake = 'a'\ncode = 'x = 1'\n", encoding="utf-8")
    with pytest.raises(AnswerError, match=r"has exercises \[1\], not \[2\]"):
        try_answers(lesson, read_answers(data))
    data.write_text("[[exercise-1]]\nmistake = 'a'\n", encoding="utf-8")
    with pytest.raises(AnswerError, match="expected mistake, says, code"):
        read_answers(data)
    data.write_text("[[ex1]]\nmistake = 'a'\n", encoding="utf-8")
    with pytest.raises(AnswerError, match="expected exercise-1"):
        read_answers(data)


@pytest.fixture(scope="module")
def kernel() -> Iterator[AsyncKernelManager]:
    """One for most lessons: half of the time that a small one takes is that of its imports."""
    manager = AsyncKernelManager(kernel_name="python3")
    yield manager
    asyncio.run(manager.shutdown_kernel(now=True))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_solutions_pass_and_wrong_answers_are_told_their_mistake(
    path: Path, kernel: AsyncKernelManager
) -> None:
    answers = LESSONS[path]
    count = len(exercises(read(path)))
    assert {a.exercise for a in answers} == set(range(1, count + 1))
    assert len(answers) >= 3 * count, "three wrong answers for each exercise"
    # What is imported decides whether kernels are interpreted; and a lesson may say how.
    alone = re.search(r"os\.environ|lane\(\)", path.read_text(encoding="utf-8")) is not None
    trials = try_answers(path, answers, None if alone else kernel)
    assert [t for t in trials if not t.holds] == []
    silent = [t for t in trials if t.expected and not t.names_the_mistake]
    assert silent == []
    named = sum(t.names_the_mistake for t in trials)
    assert named >= 0.8 * len(answers), f"only {named} of {len(answers)} mistakes are named"


def test_the_command_counts_what_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / wrong_answers.FOLDER).mkdir(parents=True)
    nbformat.write(small_lesson(), tmp_path / "notebooks" / "01_small.ipynb")
    data = tmp_path / wrong_answers.FOLDER / "01_small.toml"
    data.write_text(
        "[[exercise-1]]\nmistake = 'double'\nsays = 'twice'\ncode = 'x = 84'\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(wrong_answers.main, ["01", "--verdicts"])
    assert done.exit_code == 0, done.output
    assert "1 of 1 wrong answers are told their mistake; 0 trials failed" in done.output
    assert "✓ the answer" in done.output
