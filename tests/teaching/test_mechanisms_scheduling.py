"""The policies that lessons 07 and 08 lend are their folded solutions, and decide as the package.

Invariant tested: on random traces everybody gets the same tokens in every step.
"""

import ast
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

from plamo_ref import EngineConfig
from plamo_ref.bench.simulator import Trace, replay
from plamo_ref.teaching.mechanisms import continuous_batching, v1_scheduler
from tools.course.editions import exercises

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
MECHANISMS: dict[str, Callable[..., dict[Any, int]]] = {
    "07_continuous_batching": continuous_batching.v0,
    "08_v1_scheduler": v1_scheduler.v1,
}


@dataclass(eq=False)
class Req:
    """As in the lessons."""

    name: str
    prompt: int
    output: int
    made: int = 0
    computed: int = 0

    @property
    def left(self) -> int:
        return self.prompt + self.made - self.computed

    @property
    def decoding(self) -> bool:
        return self.made > 0 and self.left == 1


def body(source: str, name: str) -> list[str]:
    """The statements of a function, without docstring and types."""
    (found,) = (node for node in ast.parse(source).body if getattr(node, "name", "") == name)
    assert isinstance(found, ast.FunctionDef)
    lines = [ast.unparse(line).replace(": dict[R, int]", "") for line in found.body]
    return lines[ast.get_docstring(found) is not None :]


@pytest.mark.parametrize("lesson", MECHANISMS)
def test_what_is_lent_is_the_folded_solution(lesson):
    policy = MECHANISMS[lesson]
    stubs = exercises(nbformat.read(NOTEBOOKS / f"{lesson}.ipynb", as_version=4))
    (exercise,) = (e for e in stubs if f"def {policy.__name__}(" in e.stub.source)
    module = Path(policy.__code__.co_filename).read_text(encoding="utf-8")
    assert body(exercise.solution, policy.__name__) == body(module, policy.__name__)


def shares(policy: Callable[..., dict[Any, int]], pairs: list[tuple[int, int]], **limits: int):
    """(request, step, tokens) of a whole run."""
    waiting = deque(Req(str(i), *pair) for i, pair in enumerate(pairs))
    running: list[Req] = []
    rows, step = [], 0
    while waiting or running:
        step += 1
        for r, new in policy(waiting, running, **limits).items():
            rows.append((r.name, step, new))
            r.computed += new
            r.made += r.left == 0
        running[:] = [r for r in running if r.made < r.output]
    return sorted(rows)


def replayed(pairs: list[tuple[int, int]], config: EngineConfig):
    done = replay(Trace.of(*pairs), config)
    return sorted((s.request_id, r.step + 1, s.num_tokens) for r in done for s in r.scheduled)


def test_v1_decides_as_the_package():
    draw = random.Random(808)
    for _ in range(40):
        pairs = [(draw.randint(1, 30), draw.randint(1, 9)) for _ in range(draw.randint(1, 9))]
        seats, budget = draw.randint(1, 6), draw.randint(1, 25)
        config = EngineConfig(max_num_seqs=seats, max_num_batched_tokens=budget)
        ours = shares(v1_scheduler.v1, pairs, seats=seats, budget=budget)
        assert ours == replayed(pairs, config), (pairs, seats, budget)


def test_v0_decides_as_the_package():
    draw = random.Random(707)
    for _ in range(40):
        pairs = [(draw.randint(1, 30), draw.randint(1, 9)) for _ in range(draw.randint(1, 9))]
        seats, budget = draw.randint(1, 6), draw.randint(6, 25)
        chunk = draw.randint(1, budget)  # a larger one would never be read
        config = EngineConfig(
            scheduler="v0", max_num_seqs=seats, max_num_batched_tokens=budget, chunk_size=chunk
        )
        ours = shares(continuous_batching.v0, pairs, seats=seats, budget=budget, chunk=chunk)
        assert ours == replayed(pairs, config), (pairs, seats, budget, chunk)
