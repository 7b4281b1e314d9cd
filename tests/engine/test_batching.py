"""From a schedule to the tensors of a step.

Invariant tested: what a batch says of a token is what one finds by walking through the requests
one token at a time.
"""

import random

import pytest
import torch
from engines import GREEDY, new_core
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo_ref.batch import ForwardBatch, Room
from plamo_ref.engine import core as core_module
from plamo_ref.engine.batching import BatchPlan, build_batch
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.scheduling.scheduler import Schedule
from plamo_ref.sampling import SamplingParams

CPU = torch.device("cpu")


def plans(seed: int, scheduler: str = "v1", steps: int = 12) -> list[tuple[BatchPlan, Schedule]]:
    """Batches of a few steps of a small engine with random requests, each checked on the way."""
    rng = random.Random(seed)
    chunk = 6 if scheduler == "v0" else None
    core = new_core(
        block_size=rng.randint(1, 5),
        max_num_batched_tokens=rng.randint(6, 20),
        scheduler=scheduler,
        chunk_size=chunk,
    )
    made = []
    for _ in range(steps):
        if rng.random() < 0.6:
            core.add([rng.randrange(64) for _ in range(rng.randint(1, 25))], GREEDY)
        schedule = core.scheduler.schedule()
        if not schedule:
            continue
        plan = build_batch(schedule, core.cache, core.runner.place)
        check_against_a_walk(plan, schedule, core)
        made.append((plan, schedule))
        for request, tokens in schedule.tokens.items():
            request.num_computed_tokens += tokens
        for request in plan.sampled:
            request.append(rng.randrange(64))
            if len(request.output_ids) == 5:
                core.finish(request.request_id)
    return made


def check_against_a_walk(plan: BatchPlan, schedule: Schedule, core: EngineCore) -> None:
    batch, token, rows, sampled = plan.batch, 0, [], []
    assert set(plan.requests) == set(schedule.tokens)
    assert batch.num_requests == len(plan.requests)
    for number, request in enumerate(plan.requests):
        computed, held = request.num_computed_tokens, core.cache.holdings[request.request_id]
        everything = [*request.prompt_ids, *request.output_ids]
        assert batch.query_start_loc[number] == token
        assert batch.seq_lens[number] == computed + schedule.tokens[request]
        assert batch.has_past[number] == (computed > 0)
        assert batch.state_slots[number] == held.slot
        for position in range(computed, computed + schedule.tokens[request]):
            assert batch.token_ids[token] == everything[position]
            assert batch.positions[token] == position
            for kind, group in batch.groups.items():
                table, size = held.tables[kind], core.cache.block_size
                block = table.blocks[position // size - table.first]
                assert group.slot_mapping[token] == block * size + position % size
            token += 1
        for kind, group in batch.groups.items():
            table = held.tables[kind]
            width = len(table.blocks)
            assert group.first_block[number] == table.first
            assert group.block_table[number, :width].tolist() == table.blocks
            assert not group.block_table[number, width:].any(), "padded with the null block"
        if computed + schedule.tokens[request] == len(everything):
            rows.append(token - 1)
            sampled.append(request)
    assert batch.query_start_loc[-1] == token == len(batch.token_ids)
    assert torch.arange(token)[plan.rows].tolist() == rows
    assert list(plan.sampled) == sampled


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(["v0", "v1"]))
def test_a_batch_is_what_a_walk_through_the_requests_finds(seed, scheduler):
    assert plans(seed, scheduler)


def test_those_who_go_on_are_told_as_a_walk_finds_them(monkeypatch):
    """Whole steps of the core, in which most requests compute the token of the step before."""
    core, shares = new_core(seats=3, max_num_batched_tokens=8, block_size=2), []

    def checked(schedule, *rest):
        plan = build_batch(schedule, *rest)
        check_against_a_walk(plan, schedule, core)
        shares.append(sum(r.settled is not None for r in plan.requests) / len(plan.requests))
        return plan

    monkeypatch.setattr(core_module, "build_batch", checked)
    for length in (1, 9, 4, 30):
        core.add([7] * length, SamplingParams(max_tokens=9, seed=length, ignore_eos=True))
    while core.has_work:
        core.step()
    assert {0.0, 1.0} < set(shares), "alone, all of them, and beside a prompt"


def test_decodes_come_first_each_with_one_token():
    mixed = [plan for seed in range(10) for plan, _ in plans(seed)]
    mixed = [p for p in mixed if 0 < p.batch.num_decodes < p.batch.num_requests]
    assert mixed
    for plan in mixed:
        batch = plan.batch
        counts = batch.query_start_loc.diff()
        decodes = (counts == 1) & batch.has_past.bool()
        assert decodes[batch.decodes].all()
        assert not decodes[batch.prefills].any()
        assert batch.has_prefills
        assert batch.prefill_start_loc[0] == 0
        assert batch.prefill_start_loc.tolist() == [
            start - batch.num_decodes for start in batch.query_start_loc[batch.num_decodes :]
        ]


def test_two_tokens_of_a_step_never_share_a_row():
    for seed in range(5):
        for plan, _ in plans(seed):
            for group in plan.batch.groups.values():
                rows = group.slot_mapping.tolist()
                assert len(set(rows)) == len(rows)
                assert min(rows) > 0


def test_every_part_is_a_view_of_the_one_vector():
    batch = plans(0)[0][0].batch
    parts = [part for group in batch.groups.values() for part in vars(group).values()]
    parts += [part for part in vars(batch).values() if isinstance(part, torch.Tensor)]
    parts = [part for part in parts if part is not batch.vector]
    storage = batch.vector.untyped_storage().data_ptr()
    assert {part.untyped_storage().data_ptr() for part in parts} == {storage}
    assert sum(part.numel() for part in parts) == batch.vector.numel() == batch.room.size
    assert batch.vector.dtype == torch.int64


def test_a_batch_is_frozen():
    plan, _ = plans(0)[0]
    with pytest.raises(AttributeError):
        plan.batch.num_decodes = 3


@pytest.mark.parametrize(("decodes", "prompts"), [(1, 1), (1, 0), (0, 1)])
def test_the_results_of_both_kinds_are_decodes_first_and_of_what_there_is(decodes, prompts):
    batch = ForwardBatch.empty(Room(decodes, prompts, 2 * prompts, ()), CPU)
    one, two = torch.ones(1, 2), torch.zeros(2, 2)
    expected = torch.cat([one] * decodes + [two] * prompts)
    assert torch.equal(batch.both(lambda: one, lambda: two), expected)


def test_the_rows_of_a_scored_prompt_come_after_those_that_are_sampled():
    core = new_core(max_num_batched_tokens=2, seats=2)
    core.add([1], SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
    core.step()
    core.add([1, 2, 3, 4], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))
    core.step()
    plan = build_batch(core.scheduler.schedule(), core.cache, core.runner.place)
    assert plan.batch.num_decodes == plan.batch.num_requests == 2
    assert [r.request_id for r in plan.sampled] == ["0"]
    assert [(r.request_id, list(places)) for r, places in plan.scored] == [("1", [1])]
    assert torch.arange(2)[plan.rows].tolist() == [0, 1]
