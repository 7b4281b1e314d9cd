"""Faults of the arithmetic: what the model is told, what it computes, how a token is drawn.

Invariant: the books stay in order under each of them; only the law, which knows what a request's
tokens have to be, finds them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch
from plamo_ref.config import Plamo2Config
from plamo_ref.engine import core as core_module
from plamo_ref.engine.batching import BatchPlan
from plamo_ref.engine.request import Request
from plamo_ref.kernels.ssm import ScanInputs
from plamo_ref.linear import Linear
from plamo_ref.model import Mamba
from plamo_ref.teaching.planting import Fault, patch, patch_batch, patch_op, together

# --- what the model is told -----------------------------------------------------------------------


def _shift_positions(plan: BatchPlan) -> ForwardBatch:
    batch, counts = plan.batch, plan.batch.query_start_loc.diff()
    later = batch.has_past & (counts > 1)
    return replace(batch, positions=batch.positions + later.repeat_interleave(counts).long())


def _shift_mapping(plan: BatchPlan) -> ForwardBatch:
    groups = {
        kind: replace(group, slot_mapping=group.slot_mapping - 1)
        for kind, group in plan.batch.groups.items()
    }
    return replace(plan.batch, groups=groups)


def _always_past(plan: BatchPlan) -> ForwardBatch:
    return replace(plan.batch, has_past=torch.ones_like(plan.batch.has_past))


def _past_after_preemption(plan: BatchPlan) -> ForwardBatch:
    again = torch.tensor([r.num_preemptions > 0 for r in plan.requests])
    return replace(plan.batch, has_past=plan.batch.has_past | again.to(plan.batch.has_past.device))


def _roll_slots(plan: BatchPlan) -> ForwardBatch:
    return replace(plan.batch, state_slots=plan.batch.state_slots.roll(1))


def _roll_rows(plan: BatchPlan) -> ForwardBatch:
    return replace(plan.batch, logits_rows=plan.batch.logits_rows.roll(1))


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


def _overlook_first_stop(reason: Any, request: Request, max_model_len: int) -> Any:
    found = reason(request, max_model_len)
    return None if found == "stop" and len(request.output_ids) == 1 else found


def _score_again(_: Any, request: Request, start: int, end: int) -> range:
    asked = request.params.prompt_logprobs is not None
    return range(start, min(end, len(request.prompt_ids) - 1)) if asked else range(0)


# --- what is computed -----------------------------------------------------------------------------


def _window_moved(by: int) -> Callable[..., Tensor]:
    def attend(op: Any, *args: Any) -> Tensor:
        window = None if args[-1] is None else args[-1] + by
        mixed: Tensor = op(*args[:-1], window)
        return mixed

    return attend


def _miss_own_token(op: Any, *args: Any) -> Any:
    *before, seq_lens, window = args
    return op(*before, seq_lens - 1, window)


def _forget(op: Any, *args: Any) -> Any:
    return op(*args[:-1], torch.zeros_like(args[-1]))


def _pad_into_slot_1(op: Any, inputs: ScanInputs, params: Any, cache: Tensor, slots: Tensor) -> Any:
    y = op(inputs, params, cache, slots)
    op(inputs.rows(slice(0, 1)), params, cache, torch.ones_like(slots[:1]))
    return y


def _round_state(op: Any, inputs: Any, params: Any, cache: Tensor, slots: Tensor) -> Any:
    y = op(inputs, params, cache, slots)
    cache[slots] = cache[slots].to(torch.float32).to(cache.dtype)
    return y


def _swap_halves(call: Any, mixer: Mamba, *args: Any) -> Any:
    parts = mixer.in_proj.weight.unflatten(0, (-1, 2, mixer.head_size))
    return call(replace(mixer, in_proj=Linear(parts.flip(1).flatten(0, 2))), *args)


def _local_theta(_: Any, config: Plamo2Config, layer: int) -> float:
    return config.rope_local_theta


def _both_attentions(wrong: Callable[..., Tensor]) -> Any:
    return together(patch_op("paged_decode", wrong), patch_op("paged_prefill", wrong))


COMPUTE_FAULTS = (
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
    Fault(
        "window sees one key too few",
        "A query reads W keys, as in most engines; in PLaMo 2 it reads W and its own.",
        "law",
        _both_attentions(_window_moved(-1)),
    ),
    Fault(
        "window sees one key too many",
        "A query reads a key that has left the window but not yet the block.",
        "law",
        _both_attentions(_window_moved(1)),
    ),
    Fault(
        "decode misses its own token",
        "Decoding looks at the tokens before the step, without the one just written.",
        "law",
        patch_op("paged_decode", _miss_own_token),
    ),
    Fault(
        "convolution forgets",
        "Each chunk of a prompt starts its convolution from zeros.",
        "law",
        patch_op("conv_prefill", _forget),
    ),
    Fault(
        "scan forgets",
        "Each chunk of a prompt starts its scan from a zero state.",
        "law",
        patch_op("scan_prefill", _forget),
    ),
    Fault(
        "padding writes into a live slot",
        "The batch is padded with a row whose state slot is 1, not the null slot.",
        "law",
        patch_op("state_update", _pad_into_slot_1),
    ),
    Fault(
        "state rounded to float32",
        'The dtype of the state is written "float32", not "at least float32".',
        "law",
        patch_op("state_update", _round_state),
    ),
    Fault(
        "gate and input swapped",
        "The halves of in_proj are taken as x, z; in PLaMo 2 z comes first in each head.",
        "law",
        patch(Mamba, "__call__", _swap_halves),
    ),
    Fault(
        "one RoPE base for all",
        "Full layers rotate with rope_local_theta, as if there were only one theta.",
        "law",
        patch(Plamo2Config, "theta", _local_theta),
    ),
)
