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

from plamo_ref.batch import join
from plamo_ref.engine.batching import BatchPlan, build_batch
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.scheduler import Schedule
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
        plan = build_batch(schedule, core.cache, CPU)
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
    if batch.rows_in_order:  # a recorded step then gives its logits without looking
        assert batch.logits_rows.tolist() == list(range(len(batch.token_ids)))
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
    assert batch.logits_rows.tolist() == rows
    assert list(plan.sampled) == sampled


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(["v0", "v1"]))
def test_a_batch_is_what_a_walk_through_the_requests_finds(seed, scheduler):
    assert plans(seed, scheduler)


def test_decodes_come_first_each_with_one_token():
    mixed = [plan for seed in range(10) for plan, _ in plans(seed)]
    mixed = [p for p in mixed if 0 < p.batch.num_decodes < p.batch.num_requests]
    assert mixed
    for plan in mixed:
        batch = plan.batch
        counts = batch.query_start_loc.diff()
        decodes = (counts == 1) & batch.has_past
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


def test_integers_are_64_bits_and_flags_are_flags():
    plan, _ = plans(0)[0]
    assert plan.batch.has_past.dtype == torch.bool
    assert {plan.batch.token_ids.dtype, plan.batch.positions.dtype} == {torch.int64}


def test_a_batch_is_frozen():
    plan, _ = plans(0)[0]
    with pytest.raises(AttributeError):
        plan.batch.num_decodes = 3


def test_join_puts_decodes_before_prefills():
    one, two = torch.ones(1, 2), torch.zeros(2, 2)
    assert torch.equal(join(one, two), torch.cat((one, two)))
    assert join(one, None) is one
    assert join(None, two) is two


def test_rows_are_not_in_order_where_a_prompt_is_scored_beside_a_decode():
    """As many rows as requests, but the decode's comes first and the prompt's token second."""
    core = new_core(max_num_batched_tokens=2, seats=2)
    core.add([1], SamplingParams(temperature=0, max_tokens=9, ignore_eos=True))
    core.step()
    core.add([1, 2, 3, 4], SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))
    core.step()
    plan = build_batch(core.scheduler.schedule(), core.cache, CPU)
    assert plan.batch.num_decodes == plan.batch.num_requests == len(plan.batch.logits_rows) == 2
    assert not plan.batch.rows_in_order
