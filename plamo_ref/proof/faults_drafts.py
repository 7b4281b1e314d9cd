"""Faults of drafts: a guess that is taken for a token, or a state that has seen one.

Invariant: none of them shows without drafts; on the scenarios of drafting.py the audit or the law
finds them.
"""

from dataclasses import replace
from typing import Any

from plamo_ref.engine.batching import BatchPlan
from plamo_ref.engine.drafts import Draft, Drafts
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Schedule
from plamo_ref.engine.speculation.drafter import Drafter
from plamo_ref.proof.planting import Fault, patch, patch_batch

Given = list[tuple[Request, int]]


def _go_on_with_the_draft(launched: Any, drafter: Drafter, schedule: Schedule) -> None:
    slots = drafter.cache.slots
    for draft in schedule.drafts.values():
        if slots is not None and draft.slot is not None:
            slots.give_back([draft.slot])


def _keep_both(launched: Any, drafter: Drafter, schedule: Schedule) -> None:
    slots = drafter.cache.slots
    held = {r: drafter.cache.holdings[r.request_id].slot for r in schedule.drafts}
    if slots is not None:
        slots.share([slot for slot in held.values() if slot is not None])
    launched(drafter, schedule)


def _forget_the_row(launched: Any, drafter: Drafter, schedule: Schedule) -> None:
    rows = drafter.cache.rows.slots.copy()
    launched(drafter, schedule)
    drafter.cache.rows.slots[:] = rows


def _one_too_many(take: Any, drafter: Drafter, drafts: Drafts, chosen: list[int]) -> Given:
    """The token behind a wrong guess is given, too."""
    given: Given = take(drafter, drafts, chosen)
    row = 0
    for request, draft in drafts.items():
        count = sum(r is request for r, _ in given)
        if count < len(draft.token_ids) and request.status != "finished":
            request.settled = None
            request.append(chosen[row + count])
            given.append((request, row + count))
        row += len(draft.token_ids)
    return given


def _over_the_stop(take: Any, drafter: Drafter, drafts: Drafts, chosen: list[int]) -> Given:
    stops = {request: request.stop_ids for request in drafts}
    for request in stops:
        request.stop_ids = frozenset()
    try:
        given: Given = take(drafter, drafts, chosen)
    finally:
        for request, ids in stops.items():
            request.stop_ids = ids
    return given


def _the_same_chance(plan: BatchPlan) -> BatchPlan:
    count = len(plan.sampled)
    behind = [number - 1 for number in plan.numbers[count:]]
    return replace(plan, numbers=[*plan.numbers[:count], *behind])


def _a_photograph_too_late(plan: BatchPlan) -> BatchPlan:
    if plan.drafts:
        plan.batch.photographs[-len(plan.drafts) :, 1] += 1
    return plan


def _beyond_the_end(count: Any, drafter: Drafter, request: Request, unread: int = 0) -> int:
    most, request.max_output_tokens = request.max_output_tokens, 1 << 62
    try:
        found: int = count(drafter, request, unread)
    finally:
        request.max_output_tokens = most
    return found


def _count_guesses(launched: Any, drafter: Drafter, schedule: Schedule) -> None:
    launched(drafter, schedule)
    for request, draft in schedule.drafts.items():
        schedule.tokens[request] += len(draft.token_ids)


def _in_its_own_slot(
    add: Any, drafter: Drafter, request: Request, count: int, schedule: Schedule
) -> int:
    found: int = add(drafter, request, count, schedule)
    draft, cache = schedule.drafts.get(request), drafter.cache
    if draft is not None and draft.slot is not None and cache.slots is not None:
        own = cache.holdings[request.request_id].slot
        cache.slots.give_back([draft.slot])
        if own is not None:
            cache.slots.share([own])
        schedule.drafts[request] = Draft(draft.token_ids, own)
    return found


DRAFT_FAULTS = (
    Fault(
        "the state goes over the draft",
        "A request goes on in the slot in which its guesses were computed.",
        "law",
        patch(Drafter, "launched", _go_on_with_the_draft),
    ),
    Fault(
        "the passed slot kept",
        "The slot in which guesses were computed is never given back.",
        "audit",
        patch(Drafter, "launched", _keep_both),
    ),
    Fault(
        "the table of slots forgotten",
        "The rows of the running requests still name the slot of a step ago.",
        "law",
        patch(Drafter, "launched", _forget_the_row),
    ),
    Fault(
        "one slot for both states",
        "The photograph is taken into the slot in which the guesses are computed.",
        "law",
        patch(Drafter, "_add", _in_its_own_slot),
    ),
    Fault(
        "the token behind a wrong guess",
        "A request gets what was chosen behind the first guess that was wrong.",
        "law",
        patch(Drafter, "take", _one_too_many),
    ),
    Fault(
        "on beyond a stop token",
        "A guess that is right and a stop token does not end the text.",
        "law",
        patch(Drafter, "take", _over_the_stop),
    ),
    Fault(
        "the random number of the token before",
        "What is chosen behind a guess is drawn as the token before it was.",
        "law",
        patch_batch(_the_same_chance),
    ),
    Fault(
        "photograph of a draft one token late",
        "The state that is kept has seen the first guess.",
        "law",
        patch_batch(_a_photograph_too_late),
    ),
    Fault(
        "a draft beyond the end",
        "Guesses go on where the text must end, and so does the text.",
        "law",
        patch(Drafter, "_count", _beyond_the_end),
    ),
    Fault(
        "guesses counted as computed",
        "Behind a step its guesses count as tokens that are in the cache.",
        "law",
        patch(Drafter, "launched", _count_guesses),
    ),
)
