"""A bound on the time of a step: what is predicted, and how much of a prompt fits.

Invariant tested: with a stated price of the work no step with waiting decodes exceeds the bound,
unless it computes the least; prompts keep their order; without a bound, or with nobody who waits,
nothing changes. No test looks at a clock but one of its own.
"""

import math
import random

import pytest
from engines import new_core
from hypothesis import given
from hypothesis import strategies as st

from plamo_ref.bench.simulator import Trace, replay
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.pace import GROWTH, KEPT, FittedTime, Pace, Share, StepWork
from plamo_ref.sampling import SamplingParams

PRICE = (0.004, 0.0001, 0.0002, 1e-8, 0.001)  # of a step, a decode, a prompt token, a key, prompts


def price(work: StepWork) -> float:
    return sum(a * b for a, b in zip(PRICE, work.features, strict=True))


# --- what a step takes ----------------------------------------------------------------------------


@given(st.integers(0, 99), st.floats(0, 0.2))
def test_prices_are_found_from_steps_that_took_what_they_took(seed, noise):
    drawn, times = random.Random(seed), FittedTime()
    for count in range(3 * KEPT):
        tokens = drawn.choice([0, drawn.randint(1, 400)])
        work = StepWork(drawn.randint(0, 64), tokens, drawn.randint(0, 10**6) + tokens * 1000)
        times.add(work, price(work) * (1 + noise * drawn.random()))
        assert count < 20 or math.isfinite(times.predict(StepWork(1, 100, 0)))
    for work in (StepWork(10, 0, 10**5), StepWork(3, 200, 10**6), StepWork(64, 350, 10**4)):
        assert 0.9 <= times.predict(work) / price(work) <= 1.15 * (1 + noise)


def test_what_was_never_measured_is_not_predicted():
    times = FittedTime()
    assert times.predict(StepWork(4, 1, 0)) == math.inf
    times.add(StepWork(4, 0, 100), 0.01)
    assert times.predict(StepWork(4, 1, 0)) == math.inf
    times.add(StepWork(4, 30, 100), 0.02)
    assert times.predict(StepWork(4, GROWTH * 30, 0)) < math.inf
    assert times.predict(StepWork(4, GROWTH * 30 + 1, 0)) == math.inf
    times.add(StepWork(4, 999, 100), 0.0)  # a clock that stood still says nothing
    assert times.predict(StepWork(4, GROWTH * 30 + 1, 0)) == math.inf


def test_a_step_that_was_held_up_does_not_spoil_the_others():
    times, drawn = FittedTime(), random.Random(0)
    for count in range(60):
        work = StepWork(8, drawn.randint(50, 200), 10_000)
        times.add(work, 5.0 if count == 30 else price(work))
    assert times.predict(StepWork(8, 100, 10_000)) < 1.5 * price(StepWork(8, 100, 10_000))


@given(st.integers(0, 40), st.integers(0, 40), st.none() | st.integers(1, 50))
def test_attended_keys_are_those_that_each_token_sees(computed, tokens, window):
    seen = range(computed + 1, computed + tokens + 1)
    counted = sum(n if window is None else min(n, window + 1) for n in seen)
    assert Pace(1, 1, window).attended(computed, tokens) == counted


def test_a_step_has_the_device_since_it_was_launched_or_since_the_last_one_was_over():
    core = new_core(max_step_time_ms=1)
    pace, now = core.queues.pace, [0.0]
    assert pace is not None
    seen: list[float] = []
    pace.times.add = lambda work, seconds: seen.append(seconds)  # type: ignore[method-assign]
    pace.clock = lambda: now[0]
    core.add([1, 2, 3], SamplingParams(max_tokens=2))
    core.step()
    schedule = core.scheduler.schedule()
    pace.launched(schedule)  # at 0; something is raised in it
    core._torn = True
    core.recover()
    for event, at in ((pace.launched, 10), (pace.launched, 11), (None, 14), (None, 15)):
        now[0] = at
        event(schedule) if event else pace.landed()
    assert seen == [0, 4, 1]


# --- what fits ------------------------------------------------------------------------------------


class Stated:
    """A price list instead of measurements."""

    def add(self, work: StepWork, seconds: float) -> None:
        """It knows already."""

    predict = staticmethod(price)


def lived(prompts: list[int], bound: float | None, seed: int = 0) -> tuple[list[StepRecord], Pace]:
    """Four short requests that decode, and then these prompts at once, with stated prices."""
    core = new_core(
        longest=400, seats=9, more_blocks=900, max_num_batched_tokens=300, max_step_time_ms=bound
    )
    if core.queues.pace is not None:
        core.queues.pace.times = Stated()
    records: list[StepRecord] = []
    core.observers.append(lambda record, *_: records.append(record))
    drawn = random.Random(seed)

    def add(length: int, most: int) -> None:
        ids = [drawn.randrange(64) for _ in range(length)]
        core.add(ids, SamplingParams(temperature=0, max_tokens=most))

    for _ in range(4):
        add(3, 60)
    core.step()
    for length in prompts:
        add(length, 1)
    while core.has_work:
        core.step()
    return records, core.queues.pace or Pace(1, 1, None)


def took(record: StepRecord, pace: Pace) -> float:
    decodes = sum(share.num_tokens == 1 for share in record.scheduled)
    keys = sum(pace.attended(share.start, share.num_tokens) for share in record.scheduled)
    return price(StepWork(decodes, record.num_tokens - decodes, keys))


@pytest.mark.parametrize("bound", [4.5, 6, 9, 30])
def test_no_step_takes_longer_than_its_bound_unless_it_computes_the_least(bound):
    records, pace = lived([200, 90, 3], bound)
    with_prompts = [r for r in records[1:] if r.num_tokens > len(r.scheduled)]
    assert with_prompts
    for record in with_prompts:
        prompt_tokens = record.num_tokens - sum(s.kind == "decode" for s in record.scheduled)
        decodes = any(s.kind == "decode" for s in record.scheduled)
        if decodes and prompt_tokens > pace.least:
            assert took(record, pace) <= bound / 1000
    free, _ = lived([200, 90, 3], None)
    assert max(took(r, pace) for r in free[1:]) > 0.03
    at_once = [r for r in free[1:] if r.num_tokens > len(r.scheduled)]
    assert len(with_prompts) > len(at_once)


def test_nobody_is_left_behind_and_prompts_keep_their_order():
    records, pace = lived([200, 90, 3], 4.5)  # not even the decodes fit
    first_steps = {share.request_id: [] for record in records for share in record.scheduled}
    for record in records:
        for share in record.scheduled:
            first_steps[share.request_id].append(record.step)
    assert [len(first_steps[str(n)]) for n in range(4)] == [60] * 4  # a token in each step
    assert first_steps["4"][-1] <= first_steps["5"][0]
    assert first_steps["5"][-1] <= first_steps["6"][0]
    sizes = {s.num_tokens for r in records[1:] for s in r.scheduled if s.kind == "prefill"}
    assert pace.least in sizes


def test_behind_a_prompt_that_is_cut_nobody_begins_however_little_it_sees():
    class Keys:
        def add(self, work: StepWork, seconds: float) -> None:
            """It knows already."""

        def predict(self, work: StepWork) -> float:
            return float(work.keys)

    pace = Pace(seconds=100, least=2, window=None)
    pace.times = Keys()
    share = Share(pace, StepWork(decodes=1, tokens=0, keys=1))
    late, new = (Request("r", (1,) * n, SamplingParams(), (), 0, 0) for n in (40, 8))
    assert share(late, 20, 50) == 4  # of tokens that see 21, 22, … others
    assert share(new, 8, 46) == 0
    assert Share(pace, StepWork(decodes=1, tokens=4, keys=91))(new, 8, 46) == 2  # there was time


def test_where_nobody_waits_a_prompt_gets_all():
    core = new_core(longest=99, max_num_batched_tokens=80, max_step_time_ms=0.001)
    core.add([1] * 75, SamplingParams(max_tokens=1))
    core.step()
    assert not core.has_work


def test_a_simulated_clock_shows_what_it_is_for():
    trace = Trace.of(*[(8, 200)] * 8, (6_000, 4, 400.0))  # the last one comes after 400 ms
    longest = {}
    for bound in (None, 25.0):
        engine = EngineConfig(max_num_batched_tokens=2048, max_step_time_ms=bound, device="cpu")
        records = replay(trace, engine, step_time=lambda tokens, *_: 10 + 0.1 * tokens)
        late = [r.total_seconds for r in records if r.started > 400 and len(r.scheduled) > 1]
        longest[bound] = max(late)
    assert longest[None] > 200
    assert 20 < longest[25.0] <= 25


@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "5", [5]])
def test_a_bound_is_a_time(value):
    with pytest.raises(EngineError, match="max_step_time_ms"):
        EngineConfig(max_step_time_ms=value)


@pytest.mark.parametrize("other", [{"scheduler": "v0"}, {"pipeline_parallel_size": 2}])
def test_a_bound_is_for_mixed_steps_on_one_stage(other):
    with pytest.raises(EngineError, match="max_step_time_ms=5 bounds the steps of"):
        EngineConfig(max_step_time_ms=5, **other)
