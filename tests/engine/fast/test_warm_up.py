"""Steps recorded ahead: which, in what order, for how long.

Invariant tested: what a server's traffic asks for is what is recorded ahead; that ends with its
time, its memory or its rooms; requests that come while an engine records are served first.
"""

import random
from dataclasses import replace
from itertools import accumulate, count

import pytest
import torch

from plamo_ref.batch import ForwardBatch, Room
from plamo_ref.bench.shapes import SHAPES
from plamo_ref.bench.stub_runner import StubRunner
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.fast.graphs import Ladders
from plamo_ref.engine.fast.warm_up import WarmUp, likely_rooms
from plamo_ref.engine.memory.planner import MemoryPlan, plan_memory
from plamo_ref.sampling import SamplingParams

ENGINE = EngineConfig(max_num_seqs=64, enable_prefix_caching=True, device="cpu")


def plan_of(engine: EngineConfig) -> MemoryPlan:
    types = {"dtype": torch.bfloat16, "state_dtype": torch.float32}
    return plan_memory(SHAPES["8b"], engine, 100 << 30, **types)


class Counted:
    """Stands for a runner: counts what is placed."""

    def __init__(self) -> None:
        self.rooms: list[Room] = []

    def place(self, room: Room) -> None:
        self.rooms.append(room)


def warm_up(engine: EngineConfig = ENGINE, has_memory=lambda: True) -> tuple[WarmUp, Counted]:
    runner = Counted()
    return WarmUp(runner, plan_of(engine), engine, has_memory), runner


@pytest.mark.parametrize("seats", [1, 3, 64, 100, 256, 300])
@pytest.mark.parametrize("caches", [False, True])
def test_every_room_is_on_the_ladders_once_and_decodes_come_first(seats, caches):
    engine = replace(ENGINE, max_num_seqs=seats, enable_prefix_caching=caches)
    plan = plan_of(engine)
    wanted = list(likely_rooms(plan, engine))
    fixed = [Ladders(plan, engine.graph_tokens).room(room) for room in wanted]
    assert None not in fixed
    assert len(set(fixed)) == len(fixed)
    decodes = [room.decodes for room in fixed if not room.prompts]
    assert decodes == sorted(decodes) == [room.decodes for room in fixed[: len(decodes)]]
    assert decodes[-1] == min(seats, 256)
    assert all(room.decodes + room.prompts <= max(seats, 1) for room in wanted)


def test_without_recorded_prompts_only_decodes_are_recorded_ahead():
    engine = replace(ENGINE, graph_tokens=0)
    assert not any(room.prompts for room in likely_rooms(plan_of(engine), engine))


class Noting(StubRunner):
    """Notes the room of each step."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size, lambda tokens, _: 0.006 + 3e-5 * tokens)
        self.asked: list[Room] = []

    def place(self, room: Room) -> ForwardBatch:
        self.asked.append(room)
        return super().place(room)


@pytest.mark.parametrize("rate", [4, 16, 64])
def test_what_a_servers_traffic_asks_for_is_recorded_ahead(rate):
    """Requests at random, each with a prompt of its own, against a stand-in for the model."""
    draw, plan, runner = random.Random(0), plan_of(ENGINE), Noting(200)
    core, arrivals = EngineCore(runner, plan, ENGINE), [draw.expovariate(rate) for _ in range(200)]
    for token, comes in enumerate(accumulate(arrivals)):
        while core.has_work and runner.clock < comes:
            core.step()
        runner.clock = max(runner.clock, comes)
        params = SamplingParams(temperature=0, max_tokens=draw.randint(2, 128), ignore_eos=True)
        core.add([token] * draw.randint(20, 400), params)
    while core.has_work:
        core.step()
    ladders = Ladders(plan, ENGINE.graph_tokens)
    ahead = {ladders.room(room) for room in likely_rooms(plan, ENGINE)}
    recorded = [room for room in map(ladders.room, runner.asked) if room is not None]
    met = sum(room in ahead for room in recorded)
    assert met >= 0.98 * len(recorded)
    assert len(recorded) >= 0.9 * len(runner.asked)


def test_each_room_is_placed_until_it_is_recorded_then_nothing_is_left():
    ahead, runner = warm_up()
    wanted = list(likely_rooms(plan_of(ENGINE), ENGINE))
    assert all(ahead.record_one() for _ in wanted)
    assert runner.rooms == [room for room in wanted for _ in range(2)]
    assert not ahead.record_one()
    assert len(runner.rooms) == 2 * len(wanted)


def test_it_ends_with_its_time_and_goes_on_later():
    ahead, runner = warm_up()
    ticks = count()
    assert ahead.record_for(3, clock=lambda: float(next(ticks)))
    assert len(runner.rooms) == 2 * 2  # the clock is asked once at the start
    assert ahead.record_one()
    assert not ahead.record_for(1e9, clock=lambda: 0.0)
    assert ahead.record_for(0, clock=lambda: 0.0)  # no time: nobody has looked


def test_it_ends_where_memory_ends():
    room_left = iter([True, True, False])
    ahead, runner = warm_up(has_memory=lambda: next(room_left))
    assert not ahead.record_for(1e9, clock=lambda: 0.0)
    assert len(runner.rooms) == 2 * 2


def test_where_a_recording_does_not_fit_after_all_nothing_more_is_tried(monkeypatch):
    ahead, runner = warm_up()
    assert ahead.record_one()

    def full(room: Room) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "place", full)
        assert not ahead.record_one()
    assert not ahead.record_one()
    assert len(runner.rooms) == 2


@pytest.mark.parametrize("value", [-1, float("nan"), "long"])
def test_a_time_that_cannot_be_is_refused(value):
    with pytest.raises(EngineError, match="warm_up_seconds"):
        EngineConfig(warm_up_seconds=value)
