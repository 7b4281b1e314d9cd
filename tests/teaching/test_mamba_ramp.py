"""Lesson 11 and the answers that are lent in it belong together.

Invariant tested: the folded solutions are the kernels that are tried and compiled; what a reader
has written is not replaced. (The trials themselves: tests/interpreted.)
"""

import ast
from pathlib import Path
from types import SimpleNamespace

import nbformat

from plamo_ref.teaching.lending import lend
from tools.course.editions import exercises

ROOT = Path(__file__).parents[2]
LESSON = ROOT / "notebooks" / "11_triton_mamba.ipynb"
ANSWERS = ROOT / "plamo_ref" / "teaching" / "mamba_ramp" / "kernels.py"


def functions(source: str) -> dict[str, str]:
    """Name → code."""
    tree = ast.parse(source)
    return {node.name: ast.unparse(node) for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_solutions_of_the_lesson_are_the_answers_that_are_tested():
    found = exercises(nbformat.read(LESSON, as_version=4))
    solutions = {k: v for exercise in found for k, v in functions(exercise.solution).items()}
    assert solutions == functions(ANSWERS.read_text(encoding="utf-8"))
    stubs = {name for exercise in found for name in functions(exercise.stub.source)}
    assert stubs == set(solutions)


def test_a_stub_has_the_parameters_of_its_answer():
    answers = ast.parse(ANSWERS.read_text(encoding="utf-8"))
    wanted = {n.name: n.args for n in answers.body if isinstance(n, ast.FunctionDef)}
    for exercise in exercises(nbformat.read(LESSON, as_version=4)):
        for node in ast.parse(exercise.stub.source).body:
            if isinstance(node, ast.FunctionDef):
                names = [arg.arg for arg in node.args.args]
                assert names == [arg.arg for arg in wanted[node.name].args], node.name


def test_what_is_open_is_lent_and_what_is_written_stays(capsys):
    ours = SimpleNamespace(walk=lambda: "ours", step=lambda: "our step")

    def walk():
        raise NotImplementedError

    def mine():
        return "mine"

    space = {"walk": walk}
    lend(space, ours, "walk", "step")
    assert space == {"walk": ours.walk, "step": ours.step}
    space = {"walk": mine}
    lend(space, ours, "walk", "step")
    assert space == {"walk": mine}
    lend(space, ours, "walk", anyway=True)
    assert space["walk"] is ours.walk
    lend(space, ours, "walk")
    says = ["lent, until yours passes", "yours", *["lent, until yours passes"] * 2]
    assert capsys.readouterr().out.splitlines() == [f"walk: {said}" for said in says]
