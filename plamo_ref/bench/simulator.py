"""Traces of requests, and a scheduling simulator that replays them.

`replay` has the engine's queues, schedulers and cache, and no model: every token is token 0, and a
step takes the time that a cost model says. So it tells who computes what in which step, as the
engine would, and nothing about texts. No tensor is needed for that, nor torch.

Invariant: the records are those of the engine with a real model (tests/bench/test_traces.py);
only their times are those of a simulated clock.
Built in notebooks/07_continuous_batching.ipynb.
"""

import json
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.endings import finish_reason, is_leaving, most_outputs
from plamo_ref.engine.memory.holding import AttentionGroup
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.record import StepRecord, begun, landed
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.limits import Limits, longest_request
from plamo_ref.engine.scheduling.scheduler import Queues
from plamo_ref.engine.scheduling.scheduler_v0 import V0Scheduler
from plamo_ref.engine.scheduling.scheduler_v1 import V1Scheduler
from plamo_ref.engine.settled import apart, batch_order, count, settle
from plamo_ref.intake.json_files import read_object
from plamo_ref.sampling import SamplingParams

StepTime = Callable[[int, int], float]  # tokens and requests of a step → how long it takes


@dataclass(frozen=True)
class TraceRequest:
    """Lengths in tokens, and when the request comes, in units of the clock."""

    prompt_len: int
    output_len: int
    arrival: float = 0.0

    def __post_init__(self) -> None:
        if min(self.prompt_len, self.output_len) < 1 or not 0 <= self.arrival < math.inf:
            raise EngineError(f"trace: {self} needs lengths of 1 or more and an arrival from 0")


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival; their ids are their places, "0", "1" …"""

    requests: tuple[TraceRequest, ...]

    def __post_init__(self) -> None:
        arrivals = [r.arrival for r in self.requests]
        if arrivals != sorted(arrivals):
            raise EngineError(f"trace: requests must be in order of arrival, not {arrivals}")

    @classmethod
    def of(cls, *requests: Sequence[float]) -> "Trace":
        """From (prompt_len, output_len) or (prompt_len, output_len, arrival)."""
        return cls(tuple(TraceRequest(int(p), int(o), *rest) for p, o, *rest in requests))

    @classmethod
    def mixed(cls, count: int = 256, scale: float = 1.0, seed: int = 20261123) -> "Trace":
        """The mixed workload: prompts 64 to 1,024, outputs 32 to 512, all lengths times `scale`."""
        rng = random.Random(seed)
        drawn = [(rng.randint(64, 1024), rng.randint(32, 512)) for _ in range(count)]
        return cls.of(*((max(1, round(p * scale)), max(1, round(o * scale))) for p, o in drawn))

    @classmethod
    def read(cls, path: str | Path) -> "Trace":
        """Read what `write` wrote. Raises EngineError when it is not a trace."""
        try:
            listed = read_object(Path(path), EngineError)["requests"]
            return cls(tuple(TraceRequest(**request) for request in listed))
        except (ValueError, TypeError, KeyError) as error:
            raise EngineError(f"{path}: not a trace: {error}") from None

    def write(self, path: str | Path) -> None:
        """As JSON: {"requests": [{"prompt_len", "output_len", "arrival"}, …]}."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


class Simulator:
    """The loop of engine/core.py for requests that are plain, with nothing to launch: every token
    is token 0, and is read at once."""

    def __init__(self, config: EngineConfig, plan: MemoryPlan, vocab_size: int) -> None:
        self.cache = plan.new_cache()
        self.queues = Queues(config, self.cache, plan.max_num_seqs)
        self.scheduler = (V0Scheduler if config.scheduler == "v0" else V1Scheduler)(self.queues)
        model = Plamo2Config(vocab_size=vocab_size, bos_token_id=None, eos_token_id=None)
        self.max_model_len = longest_request(config, self.cache, model)
        self._limits = Limits(config, vocab_size, self.max_model_len)
        self.clock = 0.0
        self.records: list[StepRecord] = []

    def add(self, request_id: str, prompt: Sequence[int], output_len: int) -> None:
        """Queue a request. Raises EngineError: it could never run."""
        params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
        ids, arrival = self._limits.check(request_id, prompt, params), int(request_id)
        request = Request(request_id, ids, params, frozenset(), 0, arrival)
        request.max_output_tokens = most_outputs(len(ids), params, self.max_model_len)
        self.queues.add(request)

    @property
    def has_work(self) -> bool:
        return bool(self.queues.waiting or self.queues.running)

    def step(self, step_time: StepTime) -> None:
        """Decide one step, let its time pass, and hand out its tokens."""
        schedule = self.queues.with_photographs(self.scheduler.schedule())
        requests, started = batch_order(schedule.tokens), self.clock
        sampled = [r for r in requests if r.num_uncomputed_tokens == schedule.tokens[r]]
        self.cache.copies.clear()
        self.queues.prefix.develop(schedule.photographs)
        record = begun(requests, sampled, schedule, self.cache, started, started)
        duration = step_time(schedule.num_tokens, len(requests))
        count(schedule.tokens)
        for request in filter(is_leaving, settle(sampled, self.cache)):
            self.queues.remove(request)
        self.clock += duration
        self.queues.landed()
        for request in sampled:
            request.num_unread_tokens -= 1
            request.append(0)
        for request in apart(sampled)[1]:
            if (reason := finish_reason(request)) is not None:
                request.finish(reason)
                self.queues.remove(request)
        record = landed(record, len(self.records), sampled, self.queues)
        self.records.append(replace(record, total_seconds=duration))


def replay(
    trace: Trace,
    engine: EngineConfig,
    plan: MemoryPlan | None = None,
    step_time: StepTime = lambda tokens, requests: 1.0,
) -> list[StepRecord]:
    """Schedule the trace to its end; the records say who computed what, and when.

    Args:
        plan: the memory; None: room for the whole trace, and `max_num_seqs` seats.
        step_time: tokens and requests of a step → its duration, in the unit of the arrivals. Where
            `max_step_time_ms` bounds it that is the millisecond.

    Raises:
        EngineError: a request that the engine would refuse, or cut short.
    """
    plan = _ample(trace, engine) if plan is None else plan
    simulator = Simulator(engine, plan, len(trace.requests))
    for i, r in enumerate(trace.requests):
        if r.prompt_len + r.output_len > simulator.max_model_len:
            raise EngineError(
                f"trace: request {i} ({r}) is longer than {simulator.max_model_len} tokens"
            )
    if simulator.queues.pace is not None:
        simulator.queues.pace.clock = lambda: simulator.clock / 1000
    coming = deque(enumerate(trace.requests))
    while coming or simulator.has_work:
        while coming and coming[0][1].arrival <= simulator.clock:
            i, r = coming.popleft()
            simulator.add(str(i), [i] * r.prompt_len, r.output_len)  # no two prompts begin alike
        if simulator.has_work:
            simulator.step(step_time)
        else:
            simulator.clock = coming[0][1].arrival  # idle until somebody comes
    return simulator.records


def _ample(trace: Trace, engine: EngineConfig) -> MemoryPlan:
    size, group = engine.block_size, AttentionGroup("full", None)
    blocks = sum(-(-(r.prompt_len + r.output_len) // size) for r in trace.requests)
    blocks = 2 + max(blocks, -(-(engine.max_model_len or 0) // size))
    return MemoryPlan((group,), {"full": blocks}, {"full": 0}, 0, 0, size, engine.seats, 0)
