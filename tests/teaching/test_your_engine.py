"""The engine of lesson 08b keeps the law, its slips are told apart, and what is lent hides nothing.

Invariant tested: the ids of a request are the reference's, under preemption too; the lesson's
solutions are the verbs that are tested here.
"""

import ast
import random
import re
from itertools import combinations
from pathlib import Path

import nbformat
import pytest
import torch

from plamo_ref import SamplingParams
from plamo_ref.engine.config import EngineError
from plamo_ref.reference import Plamo2Reference, generate_ids
from plamo_ref.teaching import CheckFailed, check_exercise
from plamo_ref.teaching.your_engine import trials, verbs
from plamo_ref.teaching.your_engine.growth import PIECES, Growth, bands
from plamo_ref.teaching.your_engine.nouns import Engine, Memory, Request
from plamo_ref.teaching.your_engine.slips import SLIPS, mistakes, mutant, ours
from tools.course.editions import exercises

LESSON = Path(__file__).parents[2] / "notebooks" / "08b_your_engine.ipynb"
CROWDS = ((83, 9), (84, 9), (86, 30))


@pytest.fixture(scope="module")
def model() -> Plamo2Reference:
    return Plamo2Reference.from_pretrained("tiny", dtype=torch.float64)


def crowd(model: Plamo2Reference, seed: int) -> tuple[Engine, list[Request]]:
    draw = random.Random(seed)
    size = draw.choice([1, 2, 4])
    memory = Memory.of(model, blocks=88 // size, slots=4, block_size=size)
    engine = Engine(model, memory, seats=draw.randint(2, 4), budget=draw.randint(2, 20))
    lengths = (draw.randint(66, 80), draw.randint(1, 20), draw.randint(1, 20), 5)
    requests = []
    for name, length in zip("ABCD", lengths, strict=True):
        ids = [draw.randint(10, 5000) for _ in range(length)]
        cold = draw.choice([0.0, 0.9])
        requests.append(Request(name, ids, draw.randint(2, 8), temperature=cold, seed=seed))
    return engine, requests


def served(engine: Engine, requests: list[Request]) -> int:
    """Tokens computed."""
    for r in requests:
        engine.add(r)
    total = 0
    with torch.inference_mode():
        while engine.waiting or engine.running:
            total += sum(verbs.step(engine).values())
    return total


def test_everybody_gets_the_ids_of_the_reference(model):
    computed = needed = 0
    for seed in range(3):
        engine, requests = crowd(model, seed)
        computed += served(engine, requests)
        needed += sum(len(r.ids) - 1 for r in requests)
        for r in requests:
            params = SamplingParams(
                max_tokens=r.max_tokens, temperature=r.temperature, seed=r.seed, ignore_eos=True
            )
            assert r.made == list(generate_ids(model, r.ids[: r.prompt_len], params)), r.name
        pools = [*engine.memory.pools.values(), engine.memory.slots]
        assert [pool.num_used for pool in pools] == [0, 0, 0]
    assert computed > needed  # somebody was sent back


def test_a_stop_token_ends_a_request_and_what_can_never_run_is_refused(model):
    engine, (first, *_) = crowd(model, 0)
    served(engine, [first])
    again = Request("again", first.ids[: first.prompt_len], 9, first.temperature, first.seed)
    again.stop_id = first.made[0]
    served(engine, [again])
    assert again.made == first.made[:1]
    with pytest.raises(EngineError, match="request long needs"):
        engine.add(Request("long", [10] * 200))
    assert not engine.waiting


def story_of(exercise: str, model: Plamo2Reference):
    return {
        "memory": trials.memory_story,
        "fits": trials.fits_story,
        "schedule": lambda schedule: [trials.schedule_story(schedule, *c) for c in CROWDS],
        "batch": trials.batch_story,
        "attention": lambda attention: [
            trials.layer_story(attention, model, layer, 87) for layer in (1, 3)
        ],
        "mamba": lambda mamba: trials.layer_story(mamba, model, 0, 88),
        "model": lambda forward, sample: (
            trials.forward_story(forward, model, 89),
            trials.sample_story(sample, 89),
        ),
        "step": lambda step: trials.engine_story(step, model, 90),
    }[exercise]


@pytest.mark.parametrize("exercise", SLIPS)
@torch.inference_mode()
def test_each_slip_is_told_and_no_two_are_taken_for_each_other(exercise, model):
    story = story_of(exercise, model)
    right, wrong = story(**ours(exercise)), mistakes(exercise, story)
    check_exercise("ours", lambda: right, right)
    stories = {sentence: leads_to() for sentence, leads_to in wrong.items()}
    for sentence, told in stories.items():
        with pytest.raises(CheckFailed, match=re.escape(f"Likely: {sentence}")):
            check_exercise("slip", lambda told=told: told, right, mistakes=stories)
    for (_, one), (said, other) in combinations(stories.items(), 2):
        with pytest.raises(CheckFailed):
            check_exercise(said, lambda one=one: one, other)


def test_a_slip_that_changes_nothing_is_refused():
    with pytest.raises(ValueError, match="step has no"):
        mutant("step", "what nobody wrote", "")


def test_a_story_ends_with_the_error_and_an_open_verb_stays_open():
    def breaks(share):
        raise KeyError("first")

    def is_open(share):
        raise NotImplementedError

    assert trials.batch_story(breaks, 1) == ["KeyError: 'first'"]
    with pytest.raises(NotImplementedError):
        trials.batch_story(is_open, 1)


# --- the lesson ----------------------------------------------------------------------------------


class _Untyped(ast.NodeTransformer):
    """Takes the types away, as the lesson does."""

    def visit_arg(self, node):
        return ast.arg(node.arg)

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        node.returns = None
        return node

    def visit_AnnAssign(self, node):
        return ast.Assign([node.target], node.value)


def plain(source: str) -> dict[str, str]:
    """Function → its code without types."""
    tree = ast.fix_missing_locations(_Untyped().visit(ast.parse(source)))
    return {n.name: ast.unparse(n) for n in tree.body if isinstance(n, ast.FunctionDef)}


def test_the_solutions_of_the_lesson_are_these_verbs():
    mine = plain(Path(verbs.__file__).read_text(encoding="utf-8"))
    found = exercises(nbformat.read(LESSON, as_version=4))
    solutions = {k: v for exercise in found for k, v in plain(exercise.solution).items()}
    assert solutions == mine
    assert set(solutions) == {piece.name for piece in PIECES}
    stubs = {name for exercise in found for name in plain(exercise.stub.source)}
    assert stubs == set(solutions)


def test_what_is_lent_calls_what_is_yours_and_replaces_nothing_unasked(capsys):
    def fits(memory, r, new):
        return "mine"

    def schedule(engine):
        raise NotImplementedError

    space = {"fits": fits, "schedule": schedule}
    growth = Growth(space)
    assert [growth.owner(n) for n in ("fits", "schedule", "step")] == ["yours", "open", "open"]
    growth.fill("fits", "schedule")
    assert capsys.readouterr().out == ("fits: yours, 2 lines\nschedule: lent, until yours passes\n")
    assert space["fits"] is fits
    assert space["schedule"].__globals__["fits"] is fits
    growth.fill("fits", lend=True)
    assert growth.owner("fits") == "lent"
    growth.fill(*(piece.name for piece in PIECES))
    picture, said = growth.picture()
    assert said.endswith("0 yours, 10 lent, 0 open")
    assert {text.get_text().split()[0] for text in picture.axes[0].texts} == {
        piece.name for piece in PIECES
    }
    rows = growth.difference().splitlines()
    assert [row.split()[0] for row in rows[1:-1]] == [piece.name for piece in PIECES]


def test_bands_lie_one_on_the_other():
    fig = bands([[1, 0], [2, 3]], "AB", capacity=6)
    tops = [bar.get_y() + bar.get_height() for bar in fig.axes[0].patches]
    assert tops == [1, 2, 1, 5]
    assert [text.get_text() for text in fig.axes[0].texts] == ["A", "B"]
