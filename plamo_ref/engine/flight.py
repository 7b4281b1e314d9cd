"""A step between its launch and its landing, and the record that it leaves.

Invariant: what a record says of a step was read when the step was launched, before the counters
moved on; only who finished, and the clock, are read when it lands.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plamo_ref.config import LayerKind
from plamo_ref.engine.batching import BatchPlan
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.record import ScheduledTokens, StepRecord, memory_in_use
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Queues, Schedule
from plamo_ref.engine.tokens import needs_host

# Called after a step with its record, the requests that got a token, and their logits [n, V]. The
# step is done by then: what an observer raises is raised to whoever made it, and changes nothing.
Told = tuple[StepRecord, Sequence[Request], Tensor]
Observer = Callable[[StepRecord, Sequence[Request], Tensor], None]


@dataclass(frozen=True)
class FlightLog:
    """What observers want to know of a step, as it was at its launch."""

    shares: tuple[ScheduledTokens, ...]
    blocks_used: Mapping[LayerKind, int]
    slots_used: int


@dataclass(frozen=True)
class Flight:
    """A launched step."""

    plan: BatchPlan
    schedule: Schedule
    logits: Tensor  # [n, V], those of `plan.sampled` first
    tokens: Tensor  # [len(plan.sampled)] int64 on the device
    tokens_on_host: Tensor  # the same, once `wait` has returned
    copied: torch.cuda.Event | None
    log: FlightLog | None
    started: float  # seconds on a monotonic clock
    scheduled: float

    @classmethod
    def of(
        cls,
        plan: BatchPlan,
        schedule: Schedule,
        logits: Tensor,
        tokens: Tensor,
        log: FlightLog | None,
        started: float,
        scheduled: float,
    ) -> "Flight":
        """Start to copy the tokens to the host, right behind the step and before the next one."""
        on_host, copied = tokens, None
        if tokens.is_cuda:
            on_host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            on_host.copy_(tokens, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(tokens.device))
        usable = tokens.clamp(0, logits.shape[-1] - 1)  # the next step reads them, NO_TOKEN too
        return cls(plan, schedule, logits, usable, on_host, copied, log, started, scheduled)

    def needs_host(self, has_tables: bool) -> bool:
        """Whether it must land before the next step is decided."""
        return bool(self.plan.scored) or any(needs_host(r, has_tables) for r in self.plan.sampled)

    def wait(self) -> None:
        """Until the tokens are on the host."""
        if self.copied is not None:
            self.copied.synchronize()


def describe(plan: BatchPlan, schedule: Schedule, cache: HybridCache) -> FlightLog:
    """Who computes what in a step that is being launched."""
    sampled = set(plan.sampled)
    shares = tuple(
        ScheduledTokens(
            request_id=request.request_id,
            start=request.num_computed_tokens,
            num_tokens=schedule.tokens[request],
            kind="decode"
            if request.is_decoding and request not in schedule.admitted
            else ("recompute" if request.num_preemptions else "prefill"),
            sampled=request in sampled,
        )
        for request in plan.requests
    )
    return FlightLog(shares, *memory_in_use(cache))


def record_of(flight: Flight, number: int, landed: Sequence[Request], queues: Queues) -> StepRecord:
    """The record of a step that has landed as number `number`, for those who got a token."""
    assert flight.log is not None
    return StepRecord(
        step=number,
        scheduled=flight.log.shares,
        admitted=tuple(r.request_id for r in flight.schedule.admitted),
        preempted=tuple(r.request_id for r in flight.schedule.preempted),
        found=tuple((r.request_id, *found) for r, found in flight.schedule.found.items()),
        finished=tuple(r.request_id for r in landed if r.finish_reason is not None),
        num_waiting=len(queues.waiting),
        num_running=len(queues.running),
        blocks_used=flight.log.blocks_used,
        slots_used=flight.log.slots_used,
        started=flight.started,
        schedule_seconds=flight.scheduled - flight.started,
        total_seconds=time.perf_counter() - flight.started,
    )
