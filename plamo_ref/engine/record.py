"""What happened in each step, for people and tests.

Invariant: a record is plain numbers and strings; nobody who reads it can change the engine. What it
says of a step was read when the step was launched, before the counters moved on; only who finished
and who is left, and the clock, are read when it lands.
Built in notebooks/07_continuous_batching.ipynb.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from plamo_ref.config import LayerKind
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Queues, Schedule


@dataclass(frozen=True)
class ScheduledTokens:
    """The share of one request in a step."""

    request_id: str
    start: int  # position of the first token
    num_tokens: int
    kind: Literal["prefill", "decode", "recompute"]
    sampled: bool  # whether the step gave the request a new token
    drafted: int = field(default=0, repr=False)  # guesses that were computed behind these tokens


@dataclass(frozen=True)
class StepRecord:
    """One step. Blocks and slots are counted before finished requests give theirs back."""

    step: int
    scheduled: tuple[ScheduledTokens, ...]
    admitted: tuple[str, ...]
    preempted: tuple[str, ...]
    finished: tuple[str, ...]
    num_waiting: int
    num_running: int
    blocks_used: Mapping[LayerKind, int]
    slots_used: int
    started: float  # seconds on a monotonic clock
    schedule_seconds: float
    total_seconds: float
    # Of each one admitted: tokens that it found computed already, and why not more (see prefix.py).
    found: tuple[tuple[str, int, str], ...] = ()
    accepted: int = 0  # tokens that requests got besides one each, as they had been guessed
    seen: Any = field(default=None, compare=False, repr=False)  # a Sighting, if a file is written

    @property
    def num_tokens(self) -> int:
        return sum(share.num_tokens + share.drafted for share in self.scheduled)


def memory_in_use(cache: HybridCache) -> tuple[dict[LayerKind, int], int]:
    """Blocks of each group and slots that requests hold; what is only kept counts as free."""
    blocks = {kind: pool.num_held for kind, pool in cache.blocks.items()}
    return blocks, 0 if cache.slots is None else cache.slots.num_held


def begun(
    requests: Sequence[Request],
    sampled: Collection[Request],
    schedule: Schedule,
    cache: HybridCache,
    started: float,
    scheduled: float,
) -> StepRecord:
    """The record of a step that is being launched: its schedule was begun when it `started`, and
    was there when it was `scheduled`. What the record does not know yet is 0.

    requests: of the step, in their order; sampled: those of them who get a token."""
    sampled = set(sampled)
    shares = tuple(
        ScheduledTokens(
            request_id=request.request_id,
            start=request.num_computed_tokens,
            num_tokens=schedule.tokens[request],
            kind="decode"
            if request.is_decoding and request not in schedule.admitted
            else ("recompute" if request.num_preemptions else "prefill"),
            sampled=request in sampled,
            drafted=len(schedule.drafts.guesses(request)),
        )
        for request in requests
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
    """The record of a step that has landed as number `number`; `moved` are who got each token."""
    finished = [r.request_id for r in dict.fromkeys(moved) if r.finish_reason is not None]
    return replace(
        record,
        step=number,
        accepted=len(moved) - len(set(moved)),
        finished=tuple(finished),
        num_waiting=len(queues.waiting),
        num_running=len(queues.running),
        total_seconds=time.perf_counter() - record.started,
    )
