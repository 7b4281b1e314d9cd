"""Faults of the arithmetic: what the model computes.

Invariant: the books stay in order under each of them; only the law, which knows what a request's
tokens have to be, finds them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from plamo_ref.config import Plamo2Config
from plamo_ref.kernels.ssm.narrow import ReplayCache
from plamo_ref.kernels.ssm.twin import ScanInputs
from plamo_ref.linear import Linear
from plamo_ref.model import Mamba
from plamo_ref.proof.planting import Fault, patch, patch_op, together


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
    *before, has_past, photographs = args
    return op(*before, torch.zeros_like(has_past), photographs)


def _pad_into_slot_1(op: Any, inputs: ScanInputs, params: Any, cache: Tensor, slots: Tensor) -> Any:
    y = op(inputs, params, cache, slots)
    op(inputs.rows(slice(0, 1)), params, cache, torch.ones_like(slots[:1]))
    return y


def _round_state(op: Any, inputs: Any, params: Any, cache: Tensor, slots: Tensor) -> Any:
    y = op(inputs, params, cache, slots)
    cache[slots] = cache[slots].to(torch.float32).to(cache.dtype)
    return y


def _leave_full(op: Any, params: Any, cache: ReplayCache, *where: Any) -> None:
    before = cache.ring_delta.clone()
    op(params, cache, *where)
    cache.ring_delta.copy_(before)


def _swap_halves(call: Any, mixer: Mamba, *args: Any) -> Any:
    weight = mixer.in_proj.weight
    assert isinstance(weight, Tensor)
    parts = weight.unflatten(0, (-1, 2, mixer.head_size))
    return call(replace(mixer, in_proj=Linear(parts.flip(1).flatten(0, 2), mixer.ops)), *args)


def _local_theta(_: Any, config: Plamo2Config, layer: int) -> float:
    return config.rope_local_theta


def _both_attentions(wrong: Callable[..., Tensor]) -> Any:
    return together(patch_op("paged_decode", wrong), patch_op("paged_prefill", wrong))


COMPUTE_FAULTS = (
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
        "a prompt leaves the ring full",
        "What somebody had put into a ring still counts for the token behind a prompt.",
        "law",
        patch_op("replay_flush", _leave_full),
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
