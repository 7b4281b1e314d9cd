"""The engine on Triton kernels, in the interpreter, beside the engine on torch twins.

Invariant tested: the model cannot tell which table it has: same greedy tokens, same logits within
float32, with prefills in chunks, decodes beside them, a window that slides and both kinds of state.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from plamo_ref.batch import ForwardBatch, Room
from plamo_ref.engine.build import new_core
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.memory.pages import Pages, PageShape, page_shape
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.kernels.choice import TORCH, triton_table
from plamo_ref.kernels.table import Kernels
from plamo_ref.proof.lab import lab_config, lab_plan, least_blocks, random_pair
from plamo_ref.proof.sharing import in_one_arena
from plamo_ref.sampling import SamplingParams

CONFIG = lab_config(hidden_size_per_head=16, num_attention_heads=2, num_key_value_heads=1)
PROMPTS = ((5, 9, 33, 60, 2, 2, 17, 41, 8), (7, 12, 50))


class RoomyRunner(ModelRunner):
    """Computes steps as recorded ones are computed, with room left over."""

    def place(self, room: Room) -> ForwardBatch:
        widths = tuple((kind, 12) for kind, _ in room.widths)
        more = (room.prompts + 2, room.tokens + 3) if room.prompts else (0, 0)
        return super().place(Room(3, *more, widths, 3 if room.photographs else 0))


Said = tuple[list[list[int]], list[torch.Tensor]]


def run(
    table: Kernels,
    runner: type[ModelRunner] = ModelRunner,
    prompts: tuple[tuple[int, ...], ...] = PROMPTS,
    most: int = 4,
    **engine: Any,
) -> Said:
    """Tokens of each request, and the logits of each step."""
    model = random_pair(CONFIG, torch.float32, ops=table).served
    plan = lab_plan(
        CONFIG,
        block_size=4,
        blocks={kind: 2 * count for kind, count in least_blocks(CONFIG, 4, 40).items()},
        slots=2 + bool(engine),
        max_num_seqs=2,
    )
    plan = replace(plan, replay=engine.get("state_replay", 1))
    if engine.get("one_arena"):
        shape = page_shape(CONFIG, 4, 4, 4)
        assert isinstance(shape, PageShape)
        kinds = ("mamba", "sliding_window", "full")
        least = dict(zip(kinds, (1, 1, 2), strict=True))
        assured = {kind: shape.uses[kind].count * least[kind] for kind in kinds}
        plan = in_one_arena(plan, Pages(shape, 8, least, assured))
    budget = {"max_num_batched_tokens": 7} | engine
    settings = EngineConfig(dtype="float32", device="cpu", block_size=4, max_num_seqs=2, **budget)
    core = new_core(runner(model, plan, torch.float32), plan, settings)
    logits: list[torch.Tensor] = []
    core.observers.append(lambda record, requests, rows: logits.append(rows.clone()))
    greedy = SamplingParams(temperature=0, max_tokens=most)
    requests = [core.add(prompt, greedy) for prompt in prompts]
    while core.has_work:
        core.step()
    return [list(request.output_ids) for request in requests], logits


@pytest.fixture(scope="module")
def nan_in_new_memory() -> Iterator[None]:
    """Memory that no kernel writes is NaN, and must get nowhere."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def on_triton(nan_in_new_memory: None) -> Said:
    return run(triton_table())


def test_the_engine_says_the_same_on_both_tables(on_triton):
    expected, twin_logits = run(TORCH)
    got, logits = on_triton
    assert got == expected
    assert [len(ids) for ids in got] == [4, 4]
    assert len(logits) == len(twin_logits) >= 5
    for one, other in zip(logits, twin_logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_room_left_over_in_a_step_changes_nothing(on_triton):
    expected, alone = on_triton
    got, logits = run(triton_table(), RoomyRunner)
    assert got == expected
    for one, other in zip(logits, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_states_that_are_written_every_three_tokens_change_nothing(on_triton):
    expected, alone = on_triton
    got, logits = run(triton_table(), RoomyRunner, state_replay=3)
    assert got == expected
    for one, other in zip(logits, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("one_arena", [False, True])
def test_who_begins_at_a_photograph_says_what_it_would_have_said(one_arena, nan_in_new_memory):
    """A prompt, and one that leaves it in the middle of a block; memory without an owner is NaN."""
    taken = []

    class Watched(RoomyRunner):
        def place(self, room: Room) -> ForwardBatch:
            taken.append(room.photographs)
            return super().place(room)

    prompts, most = (PROMPTS[0], (*PROMPTS[0][:6], 1, 2)), 2
    expected, _ = run(TORCH, prompts=prompts, most=most)
    settings = {"max_num_batched_tokens": 16, "enable_prefix_caching": True}
    settings |= {"one_arena": one_arena}
    got, _ = run(triton_table(), Watched, prompts, most, **settings)
    assert got == expected
    assert taken == [1, 0, 0], "where the second parts from the first, and it begins there"
