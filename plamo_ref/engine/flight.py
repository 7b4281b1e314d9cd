"""A step between its launch and its landing, and the record that it leaves.

Invariant: what a record says of a step was read when the step was launched, before the counters
moved on; only who finished and who is left, and the clock, are read when it lands.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
class Flight:
    """A launched step."""

    plan: BatchPlan
    logits: Tensor  # [n, V], those of `plan.sampled` first
    tokens: Tensor  # [len(plan.sampled)] int64 on the device
    tokens_on_host: Tensor  # the same, once `wait` has returned
    copied: torch.cuda.Event | None
    record: StepRecord | None  # as far as it can be said; None: nobody wants to know

    @classmethod
    def of(
        cls, plan: BatchPlan, logits: Tensor, tokens: Tensor, record: StepRecord | None
    ) -> "Flight":
        """Start to copy the tokens to the host, right behind the step and before the next one."""
        on_host, copied = tokens, None
        if tokens.is_cuda:
            on_host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            on_host.copy_(tokens, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(tokens.device))
        usable = tokens.clamp(0, logits.shape[-1] - 1)  # the next step reads them, NO_TOKEN too
        return cls(plan, logits, usable, on_host, copied, record)

    def needs_host(self, has_tables: bool) -> bool:
        """Whether it must land before the next step is decided."""
        special = [request for request in self.plan.sampled if not request.is_plain]
        return bool(self.plan.scored) or any(needs_host(r, has_tables) for r in special)

    def wait(self) -> None:
        """Until the tokens are on the host."""
        if self.copied is not None:
            self.copied.synchronize()


def begun(
    plan: BatchPlan, schedule: Schedule, cache: HybridCache, started: float, scheduled: float
) -> StepRecord:
    """The record of a step that is being launched: its schedule was begun when it `started`, and
    was there when it was `scheduled`. What the record does not know yet is 0."""
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
    blocks_used, slots_used = memory_in_use(cache)
    return StepRecord(
        step=0,
        scheduled=shares,
        admitted=tuple(r.request_id for r in schedule.admitted),
        preempted=tuple(r.request_id for r in schedule.preempted),
        found=tuple((r.request_id, *found) for r, found in schedule.found.items()),
        finished=(),
        num_waiting=0,
        num_running=0,
        blocks_used=blocks_used,
        slots_used=slots_used,
        started=started,
        schedule_seconds=scheduled - started,
        total_seconds=0,
        seen=None if cache.witness is None else cache.witness(),
    )


def landed(record: StepRecord, number: int, moved: Sequence[Request], queues: Queues) -> StepRecord:
    """The record of a step that has landed as number `number`; `moved` are who got a token."""
    return replace(
        record,
        step=number,
        finished=tuple(r.request_id for r in moved if r.finish_reason is not None),
        num_waiting=len(queues.waiting),
        num_running=len(queues.running),
        total_seconds=time.perf_counter() - record.started,
    )
