"""Requests to run, and the loop that runs and times them.

Invariant: a workload is decided by its numbers and seed, so that two engines, schedulers or
machines can be given the very same one.
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plamo_ref.bench.simulator import Trace
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.request import Request
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
    steps: int
    preemptions: int

    def row(self) -> dict[str, Any]:
        """The numbers that go into a report."""
        return {
            "seconds": round(self.seconds, 4),
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "output_tokens_per_s": round(self.output_tokens / self.seconds, 1),
            "total_tokens_per_s": round(
                (self.prompt_tokens + self.output_tokens) / self.seconds, 1
            ),
            "steps": self.steps,
            "preemptions": self.preemptions,
            "ttft_ms": percentiles(self.ttft),
            "itl_ms": percentiles(self.itl),
        }


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds; nearest rank."""
    ranked = sorted(seconds)
    if not ranked:
        return {}
    places = {p: ranked[math.ceil(len(ranked) * p / 100) - 1] for p in (50, 90, 99)}
    return {f"p{p}": round(value * 1e3, 3) for p, value in places.items()}


def run(core: EngineCore, trace: Trace) -> RunResult:
    """Run a trace greedily to its full lengths, each request entering at its arrival in seconds.

    What earlier runs have left in a prefix cache is forgotten: they had the same prompts.
    Nobody observes: records of steps, and the logits kept for them, would be measured as well.

    Raises:
        EngineError: a request is too long for the engine.
    """
    vocab = core.runner.model.config.vocab_size
    jobs = trace.requests
    prompts = [prompt_ids(index, job.prompt_len, vocab) for index, job in enumerate(jobs)]
    requests: list[Request] = []
    core.reset_prefix_cache()
    steps, started = core.num_steps, time.perf_counter()
    try:
        while len(requests) < len(jobs) or core.has_work:
            while len(requests) < len(jobs):
                job = jobs[len(requests)]
                if job.arrival > time.perf_counter() - started:
                    break
                params = SamplingParams(temperature=0, max_tokens=job.output_len, ignore_eos=True)
                requests.append(core.add(prompts[len(requests)], params))
                # From its arrival on: also the wait to be noticed counts.
                requests[-1].times.queued = started + job.arrival
            if core.has_work:
                core.step()
            elif len(requests) < len(jobs):
                arrival = jobs[len(requests)].arrival
                time.sleep(max(0.0, arrival - (time.perf_counter() - started)))
    finally:
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
        steps=core.num_steps - steps,
        preemptions=sum(r.num_preemptions for r in requests),
    )
