"""From a step's logits to tokens and log probabilities.

Invariant: a request's token depends on its own row, parameters, seed and tokens, nothing else;
`choose_on_device` launches and `read_tokens` waits, and nothing else does either.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from plamo_ref.engine.batching import Unread
from plamo_ref.engine.config import EngineError
from plamo_ref.engine.request import Request
from plamo_ref.kernels.choice import TORCH
from plamo_ref.kernels.table import Kernels
from plamo_ref.sampling import token_logprobs, uniform
from plamo_ref.sampling.adjust import RowContext, Tables, adjust
from plamo_ref.sampling.random import MASK
from plamo_ref.sampling.sampler import sample

NO_TOKEN = -1


class LogitsError(EngineError):
    """The model gave a request no numbers to choose by."""


def choose_on_device(
    requests: Sequence[Request],
    logits: Tensor,
    ops: Kernels = TORCH,
    numbers: Sequence[int] | None = None,
    tables: Tables | None = None,
    unread: Unread | None = None,
) -> Tensor:
    """A token for each request, from its row of logits [n, V]: [n] int64 on the logits' device.

    NO_TOKEN where a row has a NaN: nothing can be chosen by it, and `read_tokens` says so.

    Does not wait for the device. On a GPU the logits are still being computed when this starts, so
    grammar masks, which are made on the CPU, cost no time of their own.

    Args:
        ops: the model's table of kernels.
        numbers: how many output tokens each request has had, more than `output_ids` says where
            some of them are still on the device (not for a request that `needs_host`).
        tables: of the engine; None: every context is read anew, token by token.
        unread: with tables, the last token of those who had one more than `output_ids` says.
    """
    numbers = [len(r.output_ids) for r in requests] if numbers is None else numbers
    adjusted = logits
    if any(r.params.changes_logits for r in requests if not r.is_plain):
        contexts = [
            RowContext(r.params, r.prompt_ids, r.output_ids, r.stop_ids, r.guide, number)
            for r, number in zip(requests, numbers, strict=True)
        ]
        if tables is None:
            adjusted = adjust(logits, contexts)
        else:
            adjusted = tables.adjust(logits, requests, contexts, unread)
    if [r for r in requests if not r.is_greedy]:
        seeds = np.array([r.seed & MASK for r in requests], dtype=np.uint64)
        uniforms = uniform(seeds, np.array(numbers, dtype=np.uint64))
        params = [r.params for r in requests]
        chosen = sample(adjusted, params, uniforms, ops.sample, ops.argmax)
    else:
        chosen = ops.argmax(adjusted)
    return torch.where(_witness(logits).isnan(), NO_TOKEN, chosen)


def _witness(logits: Tensor) -> Tensor:
    """Of each row [n, V] a logit that is NaN if the row has one: [n].

    A NaN before the last product makes every logit one, so on a GPU the first has to do: to read
    all of them once more would cost a decode step 1 %.
    """
    return logits[:, 0] if logits.is_cuda else logits.amax(-1)  # a NaN is its row's maximum


def read_tokens(requests: Sequence[Request], logits: Tensor, tokens: Tensor) -> list[int]:
    """Wait for the tokens that `choose_on_device` made; notes the log probabilities asked.

    Raises:
        LogitsError: a row has none.
    """
    ids: list[int] = tokens.tolist()
    wrong = ids and not 0 <= min(ids) <= max(ids) < logits.shape[-1]
    for request, token in zip(requests, ids, strict=True) if wrong else ():
        if not 0 <= token < logits.shape[-1] and request.status != "finished":
            raise LogitsError(
                f"request {request.request_id}: the model's logits are not numbers (NaN) after "
                f"{len(request.prompt_ids) + len(request.output_ids):,} tokens: check the weights "
                "with dtype='float32'"
            )
    _note_logprobs(requests, logits, ids)
    return ids


def _note_logprobs(requests: Sequence[Request], logits: Tensor, tokens: Sequence[int]) -> None:
    """The log probabilities of all who asked, at once."""
    asked = [i for i, r in enumerate(requests) if not r.is_plain and r.params.logprobs is not None]
    # A request that was aborted while its token was under way does not get it.
    rows = [
        (i, r, r.params.logprobs or 0) for i in asked if (r := requests[i]).status != "finished"
    ]
    if not rows:
        return
    places = [i for i, _, _ in rows]
    most = max(count for _, _, count in rows)
    scores = token_logprobs(logits[places], [tokens[i] for i in places], most)
    for (_, request, count), score in zip(rows, scores, strict=True):
        noted = replace(score, top=score.top[:count])
        request.logprobs[len(request.output_ids) :] = [noted]  # also if this is done again


def score_prompt(request: Request, places: range, logits: Tensor) -> None:
    """Note the log probabilities of prompt tokens: from each row, of the one after its place."""
    if request.status != "finished":
        tokens = [request.prompt_ids[place + 1] for place in places]
        count = request.params.prompt_logprobs or 0
        request.prompt_logprobs += token_logprobs(logits, tokens, count)
