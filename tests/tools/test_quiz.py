"""The questions: each lesson has three, numbers in them are computed, pages hide or show answers.

Invariant tested: what a question calls right follows from the code where it names a number.
"""

import math
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner

from plamo_ref import EngineConfig, budget
from plamo_ref.bench.shapes import SHAPES
from plamo_ref.bench.simulator import Trace, replay
from tools.course import quiz
from tools.course.editions import number_of
from tools.course.quiz import Question, QuizError, read_all, read_questions

ROOT = Path(__file__).parents[2]
LESSONS = {number_of(path): path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
QUESTIONS = [question for each in read_all(ROOT).values() for question in each]
ENTRY = """[[question]]
ask = "a"
section = 3
right = "r"
why = "w"
wrong = [["x", "y"], ["z", "y"]]
"""


def named(question: Question) -> str:
    return f"{question.lesson}-{question.number}"


def decode_ms(batch: int, length: int) -> float:
    """The floor of a decode step of the 8B shape on the H200 of lesson 01."""
    return 1000 * budget.decode_bytes(SHAPES["8b"], length, batch=batch) / 4.28e12


KNOWN: dict[str, Any] = {
    "math": math, "SHAPES": SHAPES, "Trace": Trace, "replay": replay,
    "EngineConfig": EngineConfig, "decode_ms": decode_ms,
}  # fmt: skip


def test_every_lesson_has_its_questions():
    files = {number_of(path): path.stem for path in (ROOT / quiz.FOLDER).glob("*.toml")}
    assert files == {number: path.stem for number, path in LESSONS.items()}


@pytest.mark.parametrize("question", [q for q in QUESTIONS if q.proof], ids=named)
def test_a_number_that_is_named_is_so(question):
    assert eval(question.proof, dict(KNOWN)) is True


def test_who_asks_for_a_number_proves_it():
    asked = [q for q in QUESTIONS if re.fullmatch(r"[\d.,]+( MB)?", right(q))]
    assert len(asked) >= 10
    # A count of the window's keys, and a product of one line, are in the question itself.
    assert [named(q) for q in asked if not q.proof] == ["02-1"]


def right(question: Question) -> str:
    (option,) = [option for option in question.options if option.is_right]
    return option.text


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_answers_its_questions_where_they_say(lesson):
    cells = nbformat.read(LESSONS[lesson], as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    sections = {int(n) for n in re.findall(r"^## (\d+)\. ", text, re.MULTILINE)}
    for question in (q for q in QUESTIONS if q.lesson == lesson):
        assert question.section in sections
        assert all(len(option.why.split()) >= 2 for option in question.options)
        assert all(option.why[-1] in '.")' for option in question.options)


def test_no_letter_is_the_right_one_too_often():
    places = [[o.is_right for o in q.options].index(True) for q in QUESTIONS]
    assert max(places.count(place) for place in range(4)) < 0.4 * len(places)


def test_the_class_sees_no_answer_and_the_teacher_all(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    pages = {}
    for option, name in (([], "quiz.html"), (["--answers"], "quiz_answers.html")):
        done = CliRunner().invoke(quiz.main, [str(tmp_path), *option])
        assert done.exit_code == 0, done.output
        assert f"{len(QUESTIONS)} questions" in done.output
        pages[name] = (tmp_path / name).read_text(encoding="utf-8")
    for_class, for_teacher = pages.values()
    assert len(re.findall("☐", for_class)) == sum(len(q.options) for q in QUESTIONS)
    assert "✓" not in for_class
    assert len(re.findall('class="right"', for_teacher)) == len(QUESTIONS)
    rows = [re.findall(r"<td>(?:☐|✓)? ?[A-D]</td><td>(.*?)</td>", page, re.DOTALL)
            for page in (for_class, for_teacher)]  # fmt: skip
    assert rows[0] == rows[1], "the letters mean the same on both"
    why = "The last new token is chosen and never fed."
    assert (why in for_class, why in for_teacher) == (False, True)
    assert not re.search(r'(?:src|href)="http', for_class + for_teacher), "works without a network"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (ENTRY * 2, "2 questions, expected 3"),
        (ENTRY * 2 + ENTRY.replace("why", "because"), "question 3 has"),
        (ENTRY * 2 + ENTRY.replace('"z"', '"r"'), "question 3 wants 2 or 3 wrong options"),
    ],
)
def test_questions_of_another_form_are_refused(tmp_path, text, complaint):
    path = tmp_path / "07_small.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QuizError, match=complaint):
        read_questions(path)
    path.write_text(ENTRY * 3, encoding="utf-8")
    assert [named(q) for q in read_questions(path)] == ["07-1", "07-2", "07-3"]
