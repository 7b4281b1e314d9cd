"""Traces of requests, and a scheduling simulator that replays them.

`replay` drives the real `EngineCore` with a runner that computes nothing: its logits choose token
0, and a step takes the time that a cost model says. So it tells who computes what in which step, as
the engine would, and nothing about texts.

Invariant: the records are the core's own; only their times are those of a simulated clock.
Built in notebooks/07_continuous_batching.ipynb.
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.batching import Rows
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.copies import Copy
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.holding import AttentionGroup
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.intake.json_files import read_object
from plamo_ref.kernels.choice import TORCH
from plamo_ref.linear import Linear
from plamo_ref.model import Plamo2Model
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


class StubRunner(ModelRunner):
    """Answers as a model would that always says token 0, and only keeps the time."""

    def __init__(self, vocab_size: int, step_time: Callable[[int, int], float]) -> None:
        nothing = torch.empty(vocab_size, 0)
        head = Linear(nothing, TORCH)
        config = Plamo2Config(vocab_size=vocab_size, bos_token_id=None, eos_token_id=None)
        self.model = Plamo2Model(config, nothing, (), nothing, head, TORCH)
        self.caches, self.recordings = (), None
        self.clock = 0.0
        self.times: list[tuple[float, float]] = []  # of each step: when it began, how long it took
        self._step_time = step_time
        self._logits = torch.zeros(1, vocab_size)

    def copy(self, copies: list[Copy]) -> None:
        copies.clear()

    def run(self, batch: ForwardBatch, rows: Rows) -> Tensor:
        duration = self._step_time(batch.room.num_tokens, batch.room.num_requests)
        self.times.append((self.clock, duration))
        self.clock += duration
        return self._logits.expand(len(batch.token_ids[rows]), -1)


def replay(
    trace: Trace,
    engine: EngineConfig,
    plan: MemoryPlan | None = None,
    step_time: Callable[[int, int], float] = lambda tokens, requests: 1.0,
) -> list[StepRecord]:
    """Schedule the trace to its end; the records say who computed what, and when.

    Args:
        plan: the memory; None: room for the whole trace, and `max_num_seqs` seats.
        step_time: tokens and requests of a step → its duration, in the unit of the arrivals. Where
            `max_step_time_ms` bounds it that is the millisecond.

    Raises:
        EngineError: a request that the engine would refuse, or cut short.
    """
    runner = StubRunner(len(trace.requests), step_time)
    core = EngineCore(runner, _ample(trace, engine) if plan is None else plan, engine)
    for i, r in enumerate(trace.requests):
        if r.prompt_len + r.output_len > core.max_model_len:
            raise EngineError(
                f"trace: request {i} ({r}) is longer than {core.max_model_len} tokens"
            )
    if core.queues.pace is not None:
        core.queues.pace.clock = lambda: runner.clock / 1000
    records: list[StepRecord] = []
    core.observers.append(lambda record, *_: records.append(record))
    coming = list(enumerate(trace.requests))
    while coming or core.has_work:
        while coming and coming[0][1].arrival <= runner.clock:
            i, r = coming.pop(0)
            # Its own token, so that no two prompts begin alike.
            params = SamplingParams(temperature=0, max_tokens=r.output_len, ignore_eos=True)
            core.add([i] * r.prompt_len, params, request_id=str(i))
        if core.has_work:
            core.step()
        else:
            runner.clock = coming[0][1].arrival  # idle until somebody comes
    return [
        replace(record, started=started, schedule_seconds=0.0, total_seconds=duration)
        for record, (started, duration) in zip(records, runner.times, strict=True)
    ]


def _ample(trace: Trace, engine: EngineConfig) -> MemoryPlan:
    size, group = engine.block_size, AttentionGroup("full", None)
    blocks = sum(-(-(r.prompt_len + r.output_len) // size) for r in trace.requests)
    blocks = 2 + max(blocks, -(-(engine.max_model_len or 0) // size))
    return MemoryPlan((group,), {"full": blocks}, {"full": 0}, 0, 0, size, engine.seats, 0)
