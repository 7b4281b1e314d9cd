"""From a step's logits to tokens, log probabilities, and the reason to stop.

Invariant: a request's token depends on its own row, parameters, seed and tokens, nothing else;
`choose_on_device` launches and `read_tokens` waits, and nothing else does either.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from plamo_ref.engine.request import FinishReason, Request
from plamo_ref.kernels.choice import TORCH
from plamo_ref.kernels.table import Kernels
from plamo_ref.sampling import RowContext, adjust, sample, token_logprobs, uniform


def needs_host(request: Request) -> bool:
    """Whether the host must know a request's last token before it can choose the next one.

    A bias is fixed and `min_tokens` only counts; penalties and grammars look at the tokens, and
    log probabilities are read from logits that the next step overwrites.
    """
    params = request.params
    penalised = params.repetition_penalty != 1 or params.presence_penalty != 0
    scoring = params.prompt_logprobs is not None and bool(
        request.unscored(0, len(request.prompt_ids))
    )
    return bool(
        penalised
        or params.frequency_penalty
        or request.guide is not None
        or params.logprobs is not None
        or scoring
    )


def choose_on_device(
    requests: Sequence[Request],
    logits: Tensor,
    ops: Kernels = TORCH,
    numbers: Sequence[int] | None = None,
) -> Tensor:
    """A token for each request, from its row of logits [n, V]: [n] int64 on the logits' device.

    Does not wait for the device. On a GPU the logits are still being computed when this starts, so
    grammar masks, which are made on the CPU, cost no time of their own.

    Args:
        ops: the model's table of kernels.
        numbers: how many output tokens each request has had, more than `output_ids` says where
            some of them are still on the device (not for a request that `needs_host`).
    """
    if numbers is None:
        numbers = [len(r.output_ids) for r in requests]
    contexts = [
        RowContext(r.params, r.prompt_ids, r.output_ids, r.stop_ids, r.guide, number)
        for r, number in zip(requests, numbers, strict=True)
    ]
    uniforms = [
        0.0 if r.params.greedy else uniform(r.seed, number)
        for r, number in zip(requests, numbers, strict=True)
    ]
    params = [r.params for r in requests]
    return sample(adjust(logits, contexts), params, uniforms, ops.sample, ops.argmax)


def read_tokens(requests: Sequence[Request], logits: Tensor, tokens: Tensor) -> list[int]:
    """Wait for the tokens that `choose_on_device` made; notes the log probabilities asked."""
    ids: list[int] = tokens.tolist()
    _note_logprobs(requests, logits, ids)
    return ids


def choose(requests: Sequence[Request], logits: Tensor, ops: Kernels = TORCH) -> list[int]:
    """A token for each request, from its row of logits [n, V]; waits for the device."""
    if not requests:
        return []
    return read_tokens(requests, logits, choose_on_device(requests, logits, ops))


def _note_logprobs(requests: Sequence[Request], logits: Tensor, tokens: Sequence[int]) -> None:
    """The log probabilities of all who asked, at once."""
    asked = [(i, r, r.params.logprobs) for i, r in enumerate(requests)]
    # A request that was aborted while its token was under way does not get it.
    rows = [(i, r, count) for i, r, count in asked if count is not None and r.status != "finished"]
    if not rows:
        return
    places = [i for i, _, _ in rows]
    most = max(count for _, _, count in rows)
    scores = token_logprobs(logits[places], [tokens[i] for i in places], most)
    for (_, request, count), score in zip(rows, scores, strict=True):
        request.logprobs.append(replace(score, top=score.top[:count]))


def score_prompts(scored: Sequence[tuple[Request, range]], logits: Tensor) -> None:
    """Note the log probabilities of prompt tokens: row by row, those after the given positions."""
    start = 0
    for request, places in scored:
        rows = logits[start : start + len(places)]
        start += len(places)
        if request.status == "finished":
            continue
        tokens = [request.prompt_ids[place + 1] for place in places]
        count = request.params.prompt_logprobs or 0
        request.prompt_logprobs += token_logprobs(rows, tokens, count)


def finish_reason(request: Request, max_model_len: int) -> FinishReason | None:
    """Why the token that the request just got is its last; None: it is not.

    A finished grammar ends a text even before `min_tokens`: there is nothing left to say. If it has
    come to a dead end, nothing that fits can be said: an error, of this request alone.
    """
    guide = request.guide
    if guide is not None:
        request.error = request.error or guide.error
        if request.error is not None:
            return "error"
        if guide.finished:
            return "stop"
    if request.output_ids[-1] in request.stop_ids:
        return "stop"
    return "length" if is_full(request, len(request.output_ids), max_model_len) else None


def is_full(request: Request, num_outputs: int, max_model_len: int) -> bool:
    """Whether a request with so many output tokens gets no more, whatever they are."""
    most = request.params.max_tokens
    full = len(request.prompt_ids) + num_outputs >= max_model_len
    return full or (most is not None and num_outputs >= most)
