"""Requests to run, and the loop that runs and times them.

Invariant: a workload is decided by its numbers and seed, so that two engines, schedulers or
machines can be given the very same one.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.traces import Trace
from plamo_ref.sampling import SamplingParams

FIRST_ID = 100  # random prompts avoid control tokens


def uniform(count: int, prompt_len: int, output_len: int) -> Trace:
    """`count` equal requests, all at once."""
    return Trace.of(*[(prompt_len, output_len)] * count)


def prompt_ids(index: int, length: int, vocab_size: int) -> list[int]:
    """The random prompt number `index`."""
    rng = random.Random(index)
    return [rng.randrange(FIRST_ID, vocab_size - vocab_size // 100) for _ in range(length)]


@dataclass(frozen=True)
class RunResult:
    """What one run of a workload showed."""

    seconds: float
    prompt_tokens: int
    output_tokens: int
    ttft: list[float]  # seconds from arrival to the first token, one per request
    itl: list[float]  # mean seconds between a request's tokens, one per request
    records: list[StepRecord]

    def row(self) -> dict[str, Any]:
        """The numbers that go into a report."""
        steps = self.records
        return {
            "seconds": round(self.seconds, 4),
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "output_tokens_per_s": round(self.output_tokens / self.seconds, 1),
            "total_tokens_per_s": round(
                (self.prompt_tokens + self.output_tokens) / self.seconds, 1
            ),
            "steps": len(steps),
            "preemptions": sum(len(s.preempted) for s in steps),
            "ttft_ms": percentiles(self.ttft),
            "itl_ms": percentiles(self.itl),
            "schedule_ms_per_step": round(mean(s.schedule_seconds for s in steps) * 1e3, 4),
        }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds; nearest rank."""
    ranked = sorted(seconds)
    if not ranked:
        return {}
    places = {p: ranked[min(len(ranked) - 1, int(len(ranked) * p / 100))] for p in (50, 90, 99)}
    return {f"p{p}": round(value * 1e3, 3) for p, value in places.items()}


def run(core: EngineCore, trace: Trace) -> RunResult:
    """Run a trace greedily to its full lengths, each request entering at its arrival in seconds.

    Raises:
        EngineError: a request is too long for the engine.
    """
    vocab = core.runner.model.config.vocab_size
    waiting = list(enumerate(trace.requests))  # in order of arrival
    records: list[StepRecord] = []
    observe = lambda record, *_: records.append(record)  # noqa: E731
    core.observers.append(observe)
    requests = []
    started = time.perf_counter()
    try:
        while waiting or core.has_work:
            while waiting and waiting[0][1].arrival <= time.perf_counter() - started:
                index, job = waiting.pop(0)
                params = SamplingParams(temperature=0, max_tokens=job.output_len, ignore_eos=True)
                ids = prompt_ids(index, job.prompt_len, vocab)
                request = core.add(ids, params)
                request.times.queued = started + job.arrival  # also the wait to be noticed counts
                requests.append(request)
            if core.has_work:
                core.step()
            elif waiting:
                time.sleep(max(0.0, waiting[0][1].arrival - (time.perf_counter() - started)))
    finally:
        core.observers.remove(observe)
        for request in requests:
            core.finish(request.request_id)
    seconds = time.perf_counter() - started
    times = [r.times for r in requests]
    first = [(t.first_token or 0.0) - t.queued for t in times]
    gaps = [
        ((t.finished or 0.0) - (t.first_token or 0.0)) / (len(r.output_ids) - 1)
        for r, t in zip(requests, times, strict=True)
        if len(r.output_ids) > 1
    ]
    return RunResult(
        seconds=seconds,
        prompt_tokens=sum(len(r.prompt_ids) for r in requests),
        output_tokens=sum(len(r.output_ids) for r in requests),
        ttft=first,
        itl=gaps,
        records=records,
    )
