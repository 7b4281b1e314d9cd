"""Traces, and the simulator that replays them: its records are those of a real model."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo_ref.bench.simulator import Trace, TraceRequest, replay
from plamo_ref.engine.build import new_core
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.llm import LLM
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.record import StepRecord
from plamo_ref.sampling import SamplingParams

TALK = Trace.of((5, 3), (3, 2), (7, 4), (5, 3))  # four prompts, as in the lessons


def without_times(record: StepRecord) -> StepRecord:
    return dataclasses.replace(record, started=0.0, schedule_seconds=0.0, total_seconds=0.0)


def engine_records(llm: LLM, trace: Trace, config: EngineConfig, plan: MemoryPlan):
    """The same lengths through the real engine and the tiny model; arrivals are steps."""
    core, records = new_core(llm.core.runner, plan, config), []
    core.observers.append(lambda record, *_: records.append(without_times(record)))
    coming, clock = list(trace.requests), 0
    while coming or core.has_work:
        while coming and coming[0].arrival <= clock:
            request = coming.pop(0)
            params = SamplingParams(max_tokens=request.output_len, ignore_eos=True)
            core.add([7 + len(coming)] * request.prompt_len, params)
        if core.has_work:
            core.step()
            core.cache.check_integrity()
            clock += 1
        else:
            clock = coming[0].arrival
    return records


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", device="cpu", dtype="float32", block_size=2, max_num_seqs=3)


def shrunk(plan: MemoryPlan, full: int, seats: int) -> MemoryPlan:
    """The plan of the real model with little memory in its full-attention group."""
    blocks = {"sliding_window": plan.num_blocks["sliding_window"], "full": 1 + full}
    return dataclasses.replace(plan, num_blocks=blocks, max_num_seqs=seats)


lengths = st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(0, 9))


@settings(max_examples=25, deadline=None)
@given(
    requests=st.lists(lengths, min_size=1, max_size=5).map(lambda r: sorted(r, key=lambda x: x[2])),
    policy=st.sampled_from([("v1", None), ("v0", 3), ("v0", None)]),
    budget=st.integers(3, 12),
    full=st.integers(8, 14),
    seats=st.integers(1, 3),
    keeps=st.booleans(),
)
def test_the_records_are_those_of_a_real_model(
    llm, requests, policy, budget, full, seats, keeps
) -> None:
    scheduler, chunk = policy
    config = EngineConfig(
        scheduler=scheduler,
        chunk_size=chunk,
        block_size=2,
        max_num_batched_tokens=budget if scheduler == "v1" or chunk else 16,
        enable_prefix_caching=keeps,
    )
    trace, plan = Trace.of(*requests), shrunk(llm.plan, full, seats)
    simulated = [without_times(record) for record in replay(trace, config, plan)]
    assert simulated == engine_records(llm, trace, config, plan)


def test_a_small_pool_preempts_the_newest_and_recomputes(llm) -> None:
    config = EngineConfig(scheduler="v0", block_size=2, max_num_batched_tokens=16)
    trace, plan = Trace.of((5, 6), (5, 6)), shrunk(llm.plan, 8, 3)
    records = replay(trace, config, plan)
    assert [r.preempted for r in records if r.preempted] == [("1",)]
    assert any(s.kind == "recompute" for r in records for s in r.scheduled)
    assert [without_times(r) for r in records] == engine_records(llm, trace, config, plan)


def test_the_talks_picture_has_seven_steps_in_v0_and_five_in_v1() -> None:
    v0 = EngineConfig(max_num_batched_tokens=10, max_num_seqs=3, scheduler="v0", chunk_size=5)
    v1 = EngineConfig(max_num_batched_tokens=10, max_num_seqs=3)
    assert (len(replay(TALK, v0)), len(replay(TALK, v1))) == (7, 5)


def test_without_a_plan_memory_is_never_short() -> None:
    trace = Trace.mixed(40, scale=1 / 8)
    records = replay(trace, EngineConfig(max_num_batched_tokens=64))
    assert not any(record.preempted for record in records)
    computed = sum(record.num_tokens for record in records)
    assert computed == sum(r.prompt_len + r.output_len - 1 for r in trace.requests)


def test_the_clock_follows_the_step_time_and_waits_for_arrivals() -> None:
    trace = Trace.of((4, 2), (3, 1, 100.0))
    config = EngineConfig(max_num_batched_tokens=8)
    records = replay(trace, config, step_time=lambda tokens, requests: 10.0 * requests + tokens)
    times = [(r.started, r.total_seconds) for r in records]
    assert times == [(0.0, 14.0), (14.0, 11.0), (100.0, 13.0)]


def test_a_step_is_paid_for_by_all_its_requests() -> None:
    config = EngineConfig(max_num_batched_tokens=8)
    records = replay(Trace.of((2, 2), (3, 1)), config, step_time=lambda tokens, requests: requests)
    assert [r.total_seconds for r in records] == [2, 1]


def tokens_of(tokens: int, requests: int) -> float:
    return float(tokens)


def test_with_overlap_a_step_has_the_time_of_its_launch() -> None:
    plain, overlapped = (
        replay(TALK, EngineConfig(max_num_batched_tokens=10, overlap=overlap), None, tokens_of)
        for overlap in (False, True)
    )
    times = [(r.scheduled, r.started, r.total_seconds) for r in plain]
    assert times == [(r.scheduled, r.started, r.total_seconds) for r in overlapped]
    assert all(r.total_seconds == r.num_tokens for r in plain)


def test_a_length_limit_beyond_the_trace_needs_no_memory_of_its_own() -> None:
    limited = EngineConfig(max_num_batched_tokens=10, max_model_len=4096)
    assert replay(TALK, limited) == replay(TALK, EngineConfig(max_num_batched_tokens=10))


def test_a_request_that_the_engine_would_cut_short_is_refused() -> None:
    config = EngineConfig(scheduler="v0", max_num_batched_tokens=10)
    with pytest.raises(EngineError, match=r"request 1 .* longer than 10 tokens"):
        replay(Trace.of((4, 4), (8, 4)), config)


def test_the_mixed_workload_is_the_measured_one() -> None:
    requests = Trace.mixed().requests
    assert [(r.prompt_len, r.output_len) for r in requests[:3]] == [
        (836, 326), (983, 367), (569, 113),
    ]  # fmt: skip
    assert sum(r.prompt_len for r in requests) == 139_318
    assert sum(r.output_len for r in requests) == 69_675


def test_a_trace_survives_being_written_and_read(tmp_path) -> None:
    trace = Trace.of((5, 3), (3, 2, 0.5))
    trace.write(tmp_path / "trace.json")
    assert Trace.read(tmp_path / "trace.json") == trace


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"requests": [{"prompt": 3}]}'])
def test_a_file_that_is_no_trace_is_named(tmp_path, text) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(EngineError, match=r"bad\.json: not a trace"):
        Trace.read(tmp_path / "bad.json")


def test_impossible_requests_are_refused(tmp_path) -> None:
    for bad in ((0, 1, 0.0), (1, 0, 0.0), (1, 1, -1.0), (1, 1, math.inf)):
        with pytest.raises(EngineError, match="lengths of 1 or more"):
            TraceRequest(*bad)
    with pytest.raises(EngineError, match="order of arrival"):
        Trace.of((1, 1, 2.0), (1, 1, 1.0))
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"requests": [{"prompt_len": 0, "output_len": 1}]}))
    with pytest.raises(EngineError, match=r"zero\.json"):
        Trace.read(path)
