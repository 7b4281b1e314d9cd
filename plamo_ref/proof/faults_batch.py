"""Faults around the model: what it is told of a step, and how a token is drawn from its logits.

Invariant: the books stay in order under each of them; only the law, which knows what a request's
tokens have to be, finds them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plamo_ref.engine import core as core_module
from plamo_ref.engine.batching import BatchPlan
from plamo_ref.engine.request import Request
from plamo_ref.proof.planting import Fault, patch, patch_batch

# --- what the model is told -----------------------------------------------------------------------


def _told(plan: BatchPlan, **wrong: Any) -> BatchPlan:
    return replace(plan, batch=replace(plan.batch, **wrong))


def _shift_positions(plan: BatchPlan) -> BatchPlan:
    batch, counts = plan.batch, plan.batch.query_start_loc.diff()
    later = batch.has_past * (counts > 1)
    return _told(plan, positions=batch.positions + later.repeat_interleave(counts))


def _shift_mapping(plan: BatchPlan) -> BatchPlan:
    groups = {
        kind: replace(group, slot_mapping=group.slot_mapping - 1)
        for kind, group in plan.batch.groups.items()
    }
    return _told(plan, groups=groups)


def _always_past(plan: BatchPlan) -> BatchPlan:
    return _told(plan, has_past=torch.ones_like(plan.batch.has_past))


def _past_after_preemption(plan: BatchPlan) -> BatchPlan:
    past = plan.batch.has_past
    again = torch.tensor([r.num_preemptions > 0 for r in plan.requests], device=past.device)
    return _told(plan, has_past=past | again)


def _roll_slots(plan: BatchPlan) -> BatchPlan:
    return _told(plan, state_slots=plan.batch.state_slots.roll(1))


def _roll_rows(plan: BatchPlan) -> BatchPlan:
    rows = torch.arange(len(plan.batch.token_ids))[plan.rows]
    return replace(plan, rows=rows.roll(1))


def _keep_count(reset: Any, request: Request) -> None:
    computed = request.num_computed_tokens
    reset(request)
    request.num_computed_tokens = computed


# --- what is drawn --------------------------------------------------------------------------------


def _reseeded(more: Callable[[Request, int], int]) -> Callable[..., Tensor]:
    """Choosing with other seeds: of the request and its place in the batch."""

    def choose(healthy: Any, requests: Sequence[Request], *rest: Any) -> Tensor:
        seeds = [request.seed for request in requests]
        for place, request in enumerate(requests):
            request.seed += more(request, place)
        chosen: Tensor = healthy(requests, *rest)
        for request, seed in zip(requests, seeds, strict=True):
            request.seed = seed
        return chosen

    return choose


def _overlook_first_stop(reason: Any, request: Request) -> Any:
    found = reason(request)
    return None if found == "stop" and len(request.output_ids) == 1 else found


def _score_again(_: Any, request: Request, start: int, end: int) -> range:
    asked = request.params.prompt_logprobs is not None
    return range(start, min(end, len(request.prompt_ids) - 1)) if asked else range(0)


BATCH_FAULTS = (
    Fault(
        "chunk shifted by one",
        "The second chunk of a prompt believes that it starts one token later.",
        "law",
        patch_batch(_shift_positions),
    ),
    Fault(
        "slot mapping off by one",
        "Every key is written one row before its place.",
        "law",
        patch_batch(_shift_mapping),
    ),
    Fault(
        "state slot not reset",
        "A new request starts from the state that the slot's last user left behind.",
        "law",
        patch_batch(_always_past),
    ),
    Fault(
        "preempted request keeps its state",
        "After a preemption the prompt is computed again, on top of a state that is still there.",
        "law",
        patch_batch(_past_after_preemption),
    ),
    Fault(
        "preempted request keeps its count",
        "The number of computed tokens survives a preemption although the memory does not.",
        "law",
        patch(Request, "reset", _keep_count),
    ),
    Fault(
        "state slots mixed up",
        "Each request of a batch continues from its neighbour's state.",
        "law",
        patch_batch(_roll_slots),
    ),
    Fault(
        "logits of the neighbour",
        "Each request gets the token of the one beside it.",
        "law",
        patch_batch(_roll_rows),
    ),
    Fault(
        "seed depends on the place",
        "The random number of a request depends on its place in the batch.",
        "law",
        patch(core_module, "choose_on_device", _reseeded(lambda _, place: place)),
    ),
    Fault(
        "randomness moves at a preemption",
        "A preempted request goes on with another seed.",
        "law",
        patch(
            core_module, "choose_on_device", _reseeded(lambda request, _: request.num_preemptions)
        ),
    ),
    Fault(
        "first stop token overlooked",
        "A stop token that comes at once does not end the request.",
        "law",
        patch(core_module, "finish_reason", _overlook_first_stop),
    ),
    Fault(
        "prompt scored twice",
        "A prompt that is computed again reports its log probabilities again.",
        "law",
        patch(Request, "unscored", _score_again),
    ),
)
