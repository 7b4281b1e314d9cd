"""Both schedulers, without a model: a step computes what the schedule says, and draws a token.

Invariant tested: the budget and the seats hold, first come is first served, V0 never mixes, and
everybody ends within a bound on steps, however small the memory.
"""

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from engines import GREEDY, new_core
from hypothesis import given
from hypothesis import strategies as st

from plamo_ref.config import ConfigError
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.holding import AttentionGroup
from plamo_ref.engine.memory.pool import Pool
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Queues, Schedule
from plamo_ref.engine.scheduling.scheduler_v0 import V0Scheduler
from plamo_ref.engine.scheduling.scheduler_v1 import V1Scheduler
from plamo_ref.proof.lab import lab_config
from plamo_ref.sampling import SamplingParams

WINDOW, SIZE = 6, 2


class Desk:
    """A scheduler, its queues and its memory; tokens are computed by counting."""

    def __init__(
        self, *, blocks: int = 50, slots: int = 9, seats: int = 9, **engine: object
    ) -> None:
        self.config = EngineConfig(block_size=SIZE, max_num_seqs=seats, **engine)  # type: ignore[arg-type]
        groups = [AttentionGroup("full", None), AttentionGroup("sliding_window", WINDOW)]
        pools = {group.kind: Pool(group.kind, blocks + 1) for group in groups}
        self.cache = HybridCache(groups, pools, Pool("slot", slots + 1), SIZE)
        self.queues = Queues(self.config, self.cache, seats)
        policy = V0Scheduler if self.config.scheduler == "v0" else V1Scheduler
        self.scheduler = policy(self.queues)
        self.arrivals = 0

    def add(self, prompt: int, output: int = 3) -> Request:
        params = SamplingParams(max_tokens=output)
        number, self.arrivals = self.arrivals, self.arrivals + 1
        request = Request(f"r{number}", (0,) * prompt, params, (), 0, number)
        self.queues.add(request)
        return request

    def step(self) -> Schedule:
        schedule = self.scheduler.schedule()
        for request, tokens in schedule.tokens.items():
            assert 0 < tokens <= request.num_uncomputed_tokens
            request.num_computed_tokens += tokens
            if request.num_uncomputed_tokens == 0:
                request.append(0)
                if len(request.output_ids) == request.params.max_tokens:
                    self.queues.remove(request)
                    request.finish("length")
        self.cache.check_integrity()
        assert set(self.cache.holdings) == {r.request_id for r in self.queues.running}
        return schedule

    def run(self, most: int) -> Iterator[tuple[dict[str, int], dict[str, bool], Schedule]]:
        """Steps until nobody is left: tokens by name, who was decoding, the schedule."""
        for _ in range(most):
            if not (self.queues.running or self.queues.waiting):
                return
            decoding = {r.request_id: r.is_decoding for r in self.queues.running}
            schedule = self.step()
            assert schedule, "there is work, but nobody computed anything"
            named = {r.request_id: tokens for r, tokens in schedule.tokens.items()}
            yield named, decoding, schedule
        raise AssertionError(f"{most} steps were not enough")


def names(requests: Sequence[Request]) -> list[str]:
    return [request.request_id for request in requests]


# --- what holds for both -----------------------------------------------------------------------

LENGTHS = st.lists(st.tuples(st.integers(1, 25), st.integers(1, 8)), min_size=1, max_size=7)


@given(
    lengths=LENGTHS,
    scheduler=st.sampled_from(["v0", "v1"]),
    budget=st.integers(1, 30),
    chunk=st.integers(1, 30),
    seats=st.integers(1, 6),
    spare=st.integers(0, 10),
)
def test_everybody_ends_within_a_bound_and_the_limits_hold(
    lengths, scheduler, budget, chunk, seats, spare
):
    chunk = min(chunk, budget) if scheduler == "v0" else None
    longest = max(prompt + output for prompt, output in lengths)
    desk = Desk(
        scheduler=scheduler,
        max_num_batched_tokens=budget,
        chunk_size=chunk,
        seats=seats,
        blocks=max(math.ceil(longest / SIZE), math.ceil((WINDOW + SIZE) / SIZE)) + spare,
    )
    requests = [desk.add(*length) for length in lengths]
    tokens = sum(prompt + output for prompt, output in lengths)
    for named, decoding, schedule in desk.run(tokens * (1 + len(lengths))):
        assert schedule.num_tokens <= budget
        assert len(desk.queues.running) <= seats
        # First come, first served: the running came before the waiting, each in order.
        arrivals = [r.arrival for r in (*desk.queues.running, *desk.queues.waiting)]
        assert arrivals == sorted(arrivals)
        if scheduler == "v0":
            assert len({decoding.get(name, False) for name in named}) == 1, "mixed"
            assert all(count <= chunk for count in named.values())
        else:
            assert names(schedule.tokens) == sorted(names(schedule.tokens))
    assert all(len(r.output_ids) == r.params.max_tokens for r in requests)
    assert all(pool.num_used == 0 for pool in desk.cache.blocks.values())


@given(LENGTHS)
def test_with_room_for_all_nobody_is_preempted(lengths):
    for scheduler in ("v0", "v1"):
        desk = Desk(scheduler=scheduler, blocks=500)
        requests = [desk.add(*length) for length in lengths]
        list(desk.run(1000))
        assert not any(request.num_preemptions for request in requests)


@pytest.mark.parametrize("scheduler", ["v0", "v1"])
def test_the_newest_is_preempted_keeps_its_output_and_comes_first_again(scheduler):
    desk = Desk(scheduler=scheduler, blocks=8)  # 16 tokens for all together
    old, new, waiting = desk.add(8, 8), desk.add(4, 6), desk.add(4, 2)
    while not new.num_preemptions:
        desk.step()
    assert new.output_ids
    assert (new.num_computed_tokens, new.status) == (0, "waiting")
    assert old.num_preemptions == 0
    assert names(desk.queues.waiting)[:2] == [new.request_id, waiting.request_id]
    list(desk.run(200))
    assert len(new.output_ids) == 6


@pytest.mark.parametrize("scheduler", ["v0", "v1"])
def test_seats_and_slots_limit_who_runs(scheduler):
    for limits in ({"seats": 2}, {"slots": 2}):
        desk = Desk(scheduler=scheduler, **limits)
        for _ in range(4):
            desk.add(2)
        desk.step()
        assert names(desk.queues.running) == ["r0", "r1"]
        assert names(desk.queues.waiting) == ["r2", "r3"]


@pytest.mark.parametrize("scheduler", ["v0", "v1"])
def test_a_newcomer_waits_until_all_it_wants_fits(scheduler):
    desk = Desk(scheduler=scheduler, blocks=8)
    desk.add(8, 4), desk.add(12, 1)
    desk.step()
    assert names(desk.queues.running) == ["r0"]
    list(desk.run(50))


@pytest.mark.parametrize("scheduler", ["v0", "v1"])
def test_in_a_step_for_which_somebody_had_to_go_nobody_comes(scheduler):
    """Or he who went would come back at once, only to go again: with his memory, not his turn."""
    chunk = 2 if scheduler == "v0" else None  # so that there would be room for a piece of him
    desk = Desk(scheduler=scheduler, blocks=8, max_num_batched_tokens=6, chunk_size=chunk)
    for _ in range(4):
        desk.add(4, 8)
    preempting = 0
    while desk.queues.running or desk.queues.waiting:
        schedule = desk.step()
        preempting += bool(schedule.preempted)
        assert not (schedule.preempted and schedule.admitted)
    assert preempting > 2


def test_removing_frees_wherever_the_request_is():
    desk = Desk(seats=1)
    running, waiting = desk.add(5), desk.add(5)
    desk.step()
    desk.queues.remove(waiting)
    desk.queues.remove(running)
    desk.queues.remove(running)  # a second time is fine
    assert not desk.queues.running
    assert not desk.queues.waiting
    assert desk.cache.slots.num_used == 0


def test_nothing_to_do_is_an_empty_schedule():
    assert not Desk().step()
    assert not Desk(scheduler="v0").step()


# --- V1 ----------------------------------------------------------------------------------------


def test_v1_cuts_a_prompt_where_the_budget_ends():
    desk = Desk(max_num_batched_tokens=10)
    desk.add(23, 1)
    assert [next(iter(named.values())) for named, *_ in desk.run(9)] == [10, 10, 3]


def test_v1_mixes_decodes_and_a_piece_of_a_prompt():
    desk = Desk(max_num_batched_tokens=10)
    desk.add(6, 9)
    desk.step()
    desk.add(30, 1)
    first = desk.step()
    assert {r.request_id: tokens for r, tokens in first.tokens.items()} == {"r0": 1, "r1": 9}


def test_v1_a_budget_of_one_serves_the_oldest():
    desk = Desk(max_num_batched_tokens=1)
    desk.add(2, 2), desk.add(1, 1)
    assert [list(named) for named, *_ in desk.run(9)] == [["r0"]] * 3 + [["r1"]]


# --- V0 ----------------------------------------------------------------------------------------


def test_v0_prefills_first_and_only_then_decodes():
    desk = Desk(scheduler="v0", max_num_batched_tokens=20)
    desk.add(8, 3)
    desk.step()
    desk.add(9, 2)
    steps = [named for named, *_ in desk.run(9)]
    assert steps[0] == {"r1": 9}
    assert steps[1] == {"r0": 1, "r1": 1}


def test_v0_computes_a_prompt_whole_or_in_chunks_of_one_size():
    desk = Desk(scheduler="v0", max_num_batched_tokens=40)
    desk.add(23, 1)
    assert [named for named, *_ in desk.run(9)] == [{"r0": 23}]
    desk = Desk(scheduler="v0", max_num_batched_tokens=40, chunk_size=8)
    desk.add(23, 1)
    assert [named for named, *_ in desk.run(9)] == [{"r0": 8}, {"r0": 8}, {"r0": 7}]


def test_v0_decodes_no_more_than_the_budget():
    desk = Desk(scheduler="v0", max_num_batched_tokens=2)
    for _ in range(3):
        desk.add(1, 3)
    assert max(sum(named.values()) for named, *_ in desk.run(30)) == 2


# --- what is refused, and what is not ----------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["v0", "v1"])
def test_a_prompt_longer_than_the_budget_works(scheduler):
    chunk = 5 if scheduler == "v0" else None
    core = new_core(scheduler=scheduler, max_num_batched_tokens=7, chunk_size=chunk)
    request = core.add(list(range(40)), GREEDY)
    while core.has_work:
        core.step()
    assert len(request.output_ids) == GREEDY.max_tokens


@pytest.mark.parametrize(
    ("engine", "prompt", "reason"),
    [
        ({}, [], "the prompt has no tokens"),
        ({}, [3, 64], "prompt token 1 is 64; the vocabulary has ids 0 to 63"),
        ({}, [-1], "prompt token 0 is -1"),
        (
            {"max_model_len": 8},
            [1] * 8,
            "has 8 tokens, .* together may have 8; give the cache more",
        ),
        (
            {"scheduler": "v0", "max_num_batched_tokens": 9},
            [1] * 9,
            "scheduler='v0' computes a prompt in one step: set chunk_size, or raise max_num_batch",
        ),
    ],
)
def test_a_refusal_says_why(engine, prompt, reason):
    core = new_core(**engine)
    with pytest.raises(EngineError, match=reason):
        core.add(prompt, GREEDY)
    assert not core.has_work


def test_a_name_can_be_used_by_one_request_at_a_time():
    core = new_core()
    core.add([1], GREEDY, request_id="a")
    with pytest.raises(EngineError, match="request a is already running"):
        core.add([1], GREEDY, request_id="a")
    core.finish("a")
    core.add([1], GREEDY, request_id="a")


def test_a_length_that_the_memory_does_not_hold_is_refused_at_the_start():
    with pytest.raises(EngineError, match=r"max_model_len=9,999 does not fit: the cache holds"):
        new_core(max_model_len=9_999, more_blocks=0)


def test_a_model_that_says_how_much_it_is_good_for_gets_no_more_unless_asked():
    config = lab_config(model_max_length=20)
    assert new_core(config).max_model_len == 20
    assert new_core(config, max_model_len=9).max_model_len == 9
    assert new_core(config, max_model_len=50).max_model_len == 50, "explicitly, beyond it"
    small = new_core(config, longest=12, more_blocks=0)
    assert small.max_model_len == 12, "as much as the memory holds"
    assert new_core(lab_config()).max_model_len > 200
    with pytest.raises(ConfigError, match="model_max_length must be a positive integer or null"):
        lab_config(model_max_length=0)


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ({"block_size": 0}, "block_size must be 1 or more, not 0"),
        ({"max_model_len": 0}, "max_model_len must be 1 or more, or None, not 0"),
        ({"gpu_memory_utilization": 1.5}, "above 0 and at most 1"),
        ({"scheduler": "v2"}, 'scheduler must be "v1" or "v0", not \'v2\''),
        ({"dtype": "float16"}, "float16 overflows in this model"),
        ({"chunk_size": 4}, "chunk_size belongs to scheduler='v0'"),
        ({"scheduler": "v0", "chunk_size": 9, "max_num_batched_tokens": 8}, "must not exceed"),
        ({"device": "nowhere"}, "device='nowhere' is not a device"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(engine, reason):
    with pytest.raises(EngineError, match=reason):
        EngineConfig(**engine).resolve_device()


def test_auto_means_faithful_types():
    config = EngineConfig()
    assert config.resolve_dtype(torch.device("cpu")) == torch.float32
    assert config.resolve_dtype(torch.device("cuda")) == torch.bfloat16
    assert config.resolve_state_dtype(torch.bfloat16) == torch.float32
    assert config.resolve_state_dtype(torch.float64) == torch.float64
