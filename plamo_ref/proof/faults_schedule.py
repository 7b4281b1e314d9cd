"""Faults of the order: whose turn it is, and how much a step may hold.

Invariant: all tokens stay right under each of them; only the rules of the schedule are broken.
"""

from typing import Any

from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.pace import Share
from plamo_ref.engine.scheduling.scheduler import Queues, Schedule
from plamo_ref.engine.scheduling.scheduler_v0 import V0Scheduler
from plamo_ref.engine.scheduling.scheduler_v1 import V1Scheduler
from plamo_ref.proof.planting import Fault, patch


def _over_budget(schedule: Any, scheduler: V1Scheduler) -> Schedule:
    scheduler.queues.budget += 1
    try:
        decided: Schedule = schedule(scheduler)
        return decided
    finally:
        scheduler.queues.budget -= 1


def _last_come_first(_: Any, queues: Queues, request: Request) -> None:
    queues.waiting.appendleft(request)


def _nothing_left(add: Any, queues: Queues, request: Request) -> None:
    add(queues, request)
    request.num_computed_tokens = request.num_tokens


def _to_the_end(preempt: Any, queues: Queues, request: Request, schedule: Schedule) -> None:
    preempt(queues, request, schedule)
    queues.waiting.rotate(-1)


def _preempt_oldest(preempt: Any, queues: Queues, _: Request, schedule: Schedule) -> None:
    preempt(queues, next(r for r in queues.running if r not in schedule.tokens), schedule)


def _mix(schedule: Any, scheduler: V0Scheduler) -> Schedule:
    decided: Schedule = schedule(scheduler)
    if not any(request.is_decoding for request in decided.tokens):
        queues, cache = scheduler.queues, scheduler.queues.cache
        budget = queues.config.step_tokens - decided.num_tokens
        for request in [r for r in queues.running if r.is_decoding][:budget]:
            computed = request.num_computed_tokens
            if cache.fit(request.request_id, computed, 1):
                cache.allocate(request.request_id, computed, 1)
                decided.tokens[request] = 1
    return decided


def _no_time(_: Any, share: Share, request: Request, left: int, budget: int) -> int:
    return min(left, budget) if request.is_decoding else 0


def _time_for_the_next(ask: Any, share: Share, request: Request, left: int, budget: int) -> int:
    share._is_full = not (share._is_full or request.is_decoding)
    return int(ask(share, request, left, budget))


def _pass_over_oldest(schedule: Any, scheduler: V1Scheduler) -> Schedule:
    running = scheduler.queues.running
    oldest = running[:1] if len(running) > 1 else []
    del running[: len(oldest)]
    try:
        decided: Schedule = schedule(scheduler)
        return decided
    finally:
        running[:0] = oldest


SCHEDULE_FAULTS = (
    Fault(
        "budget exceeded",
        "A step takes one token more than max_num_batched_tokens.",
        "schedule",
        patch(V1Scheduler, "schedule", _over_budget),
    ),
    Fault(
        "last come, first served",
        "New requests go to the front of the queue.",
        "schedule",
        patch(Queues, "add", _last_come_first),
    ),
    Fault(
        "whole prompt cached",
        "A prompt that a cache knows has all its tokens computed: none is left to give logits.",
        "schedule",
        patch(Queues, "add", _nothing_left),
    ),
    Fault(
        "preempted request waits at the end",
        "A request that lost its memory has to queue again behind everybody.",
        "schedule",
        patch(Queues, "preempt", _to_the_end),
    ),
    Fault(
        "oldest preempted first",
        "When memory is short the oldest request has to go, not the newest.",
        "schedule",
        patch(Queues, "preempt", _preempt_oldest),
    ),
    Fault(
        "prefill and decode mixed",
        "The V0 scheduler fills a prefill step up with decodes.",
        "schedule",
        patch(V0Scheduler, "schedule", _mix),
    ),
    Fault(
        "oldest request passed over",
        "The V1 scheduler serves the oldest request only when it is alone.",
        "schedule",
        patch(V1Scheduler, "schedule", _pass_over_oldest),
    ),
)

HURRY_FAULTS = (
    Fault(
        "no time for a prompt",
        "As long as somebody waits for a token, a step has no time for prompts at all.",
        "schedule",
        patch(Share, "__call__", _no_time),
    ),
    Fault(
        "time for the next prompt only",
        "The first prompt is left out of a step, and the one behind it is not.",
        "schedule",
        patch(Share, "__call__", _time_for_the_next),
    ),
)
