"""Steps in more room than they need: padding changes nothing that anybody owns.

Invariant tested: with room left over, and after other steps, a step gives the hidden states it
gives alone and leaves the same in every block and slot but the null ones; a step gets the least
room on the ladders, or none.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from engines import CONFIGS, new_core
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo_ref.batch import ForwardBatch, Room
from plamo_ref.bench.shapes import SHAPES
from plamo_ref.engine.batching import BatchPlan, build_batch
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.fast.graphs import (
    DECODES,
    FULL_WIDTHS,
    LADDER,
    PHOTOGRAPHS,
    PROMPTS,
    TOKENS,
    Ladders,
    table_widths,
)
from plamo_ref.engine.memory.planner import plan_memory
from plamo_ref.proof.lab import lab_plan
from plamo_ref.sampling import SamplingParams

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


def roomy(decodes: int, prompts: int, tokens: int, width: int = 60) -> Callable[[Room], Room]:
    """So much room for whatever comes; a step without prompts gets none for them."""

    def room(needed: Room) -> Room:
        widths = tuple((kind, width) for kind, _ in needed.widths)
        more = (prompts, tokens) if needed.prompts else (0, 0)
        return Room(decodes, *more, widths)

    return room


def steps(core: EngineCore, lengths: list[int], wait: int) -> Iterator[tuple[BatchPlan, Callable]]:
    """The steps of a run whose second half arrives `wait` steps later, each before it is computed:
    its plan, and how to lay it out in a batch of one's own."""
    pending = [list(range(1, 1 + length)) for length in lengths]
    early = (len(pending) + 1) // 2
    for prompt in pending[:early]:
        core.add(prompt, GREEDY)
    number = 0
    while core.has_work or pending[early:]:
        if number == wait or not core.has_work:
            for prompt in pending[early:]:
                core.add(prompt, GREEDY)
            del pending[early:]
        number += 1
        schedule = core.scheduler.schedule()
        plan = build_batch(schedule, core.cache, core.runner.place)
        yield plan, lambda place, s=schedule: build_batch(s, core.cache, place)
        hidden = core.runner.run(plan.batch, plan.rows)
        for request, count in schedule.tokens.items():
            request.num_computed_tokens += count
        for request, row in zip(plan.sampled, hidden, strict=True):
            request.append(int(row.argmax()))
            if len(request.output_ids) == GREEDY.max_tokens:
                core.finish(request.request_id, "length")


@pytest.fixture(scope="module", autouse=True)
def _new_memory_is_nan() -> Iterator[None]:
    """So that what no kernel writes is seen wherever it gets to."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@torch.inference_mode()
def computed(core: EngineCore, plan: BatchPlan) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Hidden states, and all places but the null ones; the caches stay as they were."""
    caches = [vars(cache) for cache in core.runner.caches]
    before = [{name: value.clone() for name, value in cache.items()} for cache in caches]
    hidden = core.runner.model.forward(plan.batch, core.runner.caches)[plan.rows]
    after = [value[1:].clone() for cache in caches for value in cache.values()]
    for cache, contents in zip(caches, before, strict=True):
        for name, value in contents.items():
            cache[name].copy_(value)
    return hidden, after


@pytest.mark.parametrize("name", list(CONFIGS))
@settings(max_examples=4)
@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=5),
    wait=st.integers(0, 4),
    more=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 9)),
)
def test_room_left_over_changes_nothing(name, lengths, wait, more):
    core = new_core(CONFIGS[name])
    decodes, prompts, tokens = more
    room = roomy(4 + decodes, 4 + prompts, 16 + tokens)
    kinds = set()
    for plan, lay_out in steps(core, lengths, wait):
        padded = lay_out(lambda needed: ForwardBatch.empty(room(needed), CPU))
        hidden, places = computed(core, plan)
        padded_hidden, padded_places = computed(core, padded)
        torch.testing.assert_close(padded_hidden, hidden, rtol=0, atol=1e-12)
        for mine, other in zip(padded_places, places, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-12, equal_nan=True)
        kinds.add(plan.batch.has_prefills)
    assert kinds == {True, False}


def test_a_step_leaves_nothing_for_the_next_in_a_vector_that_is_used_again():
    core, room, used = new_core(), roomy(4, 4, 16), {}
    for _, lay_out in steps(core, [5, 19, 3, 11], wait=2):

        def again(needed: Room) -> ForwardBatch:
            fixed = room(needed)
            return used.setdefault(fixed, ForwardBatch.empty(fixed, CPU))

        mine = lay_out(again).batch
        fresh = lay_out(lambda needed: ForwardBatch.empty(room(needed), CPU)).batch
        assert mine is not fresh
        assert torch.equal(mine.vector, fresh.vector)
    assert len(used) == 2


# --- the ladders ----------------------------------------------------------------------------------


def ladders(full: bool = False, most_tokens: int = 1024, seats: int = 256) -> Ladders:
    config = CONFIGS["mamba, sliding and full" if full else "mamba and sliding"]
    blocks = {"full": 100_000, "sliding_window": 4000}
    plan = lab_plan(config, block_size=4, blocks=blocks, slots=seats, max_num_seqs=seats)
    return Ladders(plan, most_tokens)


@settings(max_examples=200)
@given(
    st.integers(0, 260),
    st.integers(0, 9),
    st.integers(1, 1100),
    st.integers(1, 40_000),
    st.integers(0, 9),
)
def test_a_step_gets_the_least_room_that_holds_it(decodes, prompts, tokens, width, moments):
    needed = Room(decodes, prompts, tokens if prompts else 0, (("full", width),), moments)
    room = ladders(full=True).room(needed)
    if not prompts and not decodes:
        return
    lists = (DECODES, PROMPTS, TOKENS, PHOTOGRAPHS) if prompts else (LADDER,)
    sizes = (decodes, prompts, tokens, moments) if prompts else (decodes,)
    fitting = [[n for n in (*rungs,) if n >= k] for rungs, k in zip(lists, sizes, strict=True)]
    widths = [n for n in FULL_WIDTHS if n >= width]
    if not all([*fitting, widths]):
        assert room is None
    else:
        rungs = (room.decodes, room.prompts, room.tokens, room.photographs)
        mine = rungs if prompts else (room.decodes,)
        assert mine == tuple(map(min, fitting))
        assert room.widths == (("full", min(widths)),)


def test_longer_prompts_than_asked_for_are_not_recorded():
    needed = Room(3, 1, 100, (("sliding_window", 2),))
    assert ladders(most_tokens=99).room(needed) is None
    assert ladders(most_tokens=100).room(needed) is not None
    assert ladders(most_tokens=0).room(Room(3, 0, 0, needed.widths)) is not None


def test_the_last_rung_is_the_number_of_seats():
    assert ladders(seats=9).room(Room(9, 0, 0, ())) == Room(9, 0, 0, ())
    assert ladders(seats=9).room(Room(10, 0, 0, ())) is None


def test_a_window_has_the_width_of_its_longest_decode_and_a_full_group_keeps_its_graph():
    plan = plan_memory(
        SHAPES["8b"], EngineConfig(), 10**10, dtype=torch.bfloat16, state_dtype=torch.float32
    )
    assert table_widths(plan) == (("sliding_window", 130),)
    at_once = ladders(full=True).room(Room(1, 0, 0, (("full", 8192),)))
    assert dict(at_once.widths)["full"] == 8192  # blocks: 32,768 tokens of 4
