"""Traces of requests, and a scheduling simulator that replays them.

`replay` runs the real queues, the real V0 or V1 scheduler and the real cache, but no model: a
stand-in hands out one token whenever the engine would sample one, until the request has its length.
So it says who computes what in which step, exactly as the engine would, and nothing about texts.

Invariant: the records are those of `EngineCore` for the same lengths (with `ignore_eos`), except
that their times are a simulated clock's. Built in notebooks/07_continuous_batching.ipynb.
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.holding import AttentionGroup
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.record import ScheduledTokens, StepRecord, memory_in_use
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Queues, Schedule, Scheduler
from plamo_ref.engine.scheduling.scheduler_v0 import V0Scheduler
from plamo_ref.engine.scheduling.scheduler_v1 import V1Scheduler
from plamo_ref.intake.json_files import read_object
from plamo_ref.sampling import SamplingParams


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


def replay(
    trace: Trace,
    engine: EngineConfig,
    plan: MemoryPlan | None = None,
    step_time: Callable[[int], float] = lambda tokens: 1.0,
) -> list[StepRecord]:
    """Schedule the trace to its end; the records say who computed what, and when.

    Args:
        plan: the memory; None: room for the whole trace, and `max_num_seqs` seats.
        step_time: tokens of a step → its duration, in the unit of the trace's arrivals.

    Raises:
        EngineError: a request that the engine would refuse, or cut short.
    """
    plan = _ample(trace, engine) if plan is None else plan
    queues = Queues(engine, plan.new_cache(), plan.max_num_seqs)
    scheduler: Scheduler = (V0Scheduler if engine.scheduler == "v0" else V1Scheduler)(queues)
    coming = _requests(trace, engine, queues.cache)
    records: list[StepRecord] = []
    clock = 0.0
    while coming or queues.waiting or queues.running:
        while coming and trace.requests[coming[0].arrival].arrival <= clock:
            queues.add(coming.pop(0))
        schedule = queues.with_photographs(scheduler.schedule())
        if schedule:
            duration = step_time(schedule.num_tokens)
            records.append(_advance(len(records), schedule, queues, clock, duration))
            clock += duration
        elif not (queues.waiting or queues.running):
            clock = trace.requests[coming[0].arrival].arrival  # idle until somebody comes
    return records


def _requests(trace: Trace, engine: EngineConfig, cache: HybridCache) -> list[Request]:
    longest = min(cache.longest_request(), engine.max_model_len or math.inf)
    if engine.scheduler == "v0" and engine.chunk_size is None:
        longest = min(longest, engine.max_num_batched_tokens)  # as in EngineCore
    requests = []
    for i, r in enumerate(trace.requests):
        if r.prompt_len + r.output_len > longest:
            raise EngineError(f"trace: request {i} ({r}) is longer than {longest} tokens")
        params = SamplingParams(max_tokens=r.output_len, ignore_eos=True)
        requests.append(Request(str(i), (i,) * r.prompt_len, params, (), 0, arrival=i))
    return requests


def _ample(trace: Trace, engine: EngineConfig) -> MemoryPlan:
    size, group = engine.block_size, AttentionGroup("full", None)
    blocks = 2 + sum(-(-(r.prompt_len + r.output_len) // size) for r in trace.requests)
    return MemoryPlan((group,), {"full": blocks}, {"full": 0}, 0, 0, size, engine.max_num_seqs, 0)


def _advance(
    step: int, schedule: Schedule, queues: Queues, clock: float, duration: float
) -> StepRecord:
    """What the engine does with a schedule, without computing anything."""
    queues.prefix.develop(schedule.photographs)
    shares, finished = [], []
    for request in sorted(schedule.tokens, key=lambda r: not _is_decode(r, schedule.tokens[r])):
        start, new = request.num_computed_tokens, schedule.tokens[request]
        kind: Literal["prefill", "decode", "recompute"] = "prefill"
        if request.is_decoding or request.num_preemptions:
            kind = "decode" if request.is_decoding else "recompute"
        sampled = new == request.num_uncomputed_tokens
        shares.append(ScheduledTokens(request.request_id, start, new, kind, sampled))
        request.num_computed_tokens += new
        if sampled:
            request.append(0)
        if len(request.output_ids) == request.params.max_tokens:
            request.finish("length")
            finished.append(request)
    memory = memory_in_use(queues.cache)
    for request in finished:
        queues.remove(request)
    return StepRecord(
        step=step,
        scheduled=tuple(shares),
        admitted=tuple(r.request_id for r in schedule.admitted),
        preempted=tuple(r.request_id for r in schedule.preempted),
        finished=tuple(r.request_id for r in finished),
        num_waiting=len(queues.waiting),
        num_running=len(queues.running),
        blocks_used=memory[0],
        slots_used=memory[1],
        started=clock,
        schedule_seconds=0.0,
        total_seconds=duration,
        found=tuple((r.request_id, *found) for r, found in schedule.found.items()),
    )


def _is_decode(request: Request, new: int) -> bool:
    """As in the batch: single tokens with a past come first."""
    return new == 1 and request.num_computed_tokens > 0
