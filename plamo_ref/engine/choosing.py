"""From a step's logits to tokens, log probabilities, and the reason to stop.

Invariant: a request's token depends on its own row, parameters, seed and tokens, nothing else.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from plamo_ref.engine.request import FinishReason, Request
from plamo_ref.sampling import RowContext, adjust, sample, token_logprobs, uniform


def choose(requests: Sequence[Request], logits: Tensor) -> list[int]:
    """A token for each request, from its row of logits [n, V]; notes the log probabilities asked.

    On a GPU the logits are still being computed when this starts, so grammar masks, which are made
    on the CPU, cost no time of their own.
    """
    if not requests:
        return []
    contexts = [
        RowContext(r.params, r.prompt_ids, r.output_ids, r.stop_ids, r.guide) for r in requests
    ]
    uniforms = [0.0 if r.params.greedy else uniform(r.seed, len(r.output_ids)) for r in requests]
    adjusted = adjust(logits, contexts)
    tokens: list[int] = sample(adjusted, [r.params for r in requests], uniforms).tolist()
    _note_logprobs(requests, logits, tokens)
    return tokens


def _note_logprobs(requests: Sequence[Request], logits: Tensor, tokens: Sequence[int]) -> None:
    """The log probabilities of all who asked, at once."""
    asked = [(i, r, r.params.logprobs) for i, r in enumerate(requests)]
    rows = [(i, request, count) for i, request, count in asked if count is not None]
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
        tokens = [request.prompt_ids[place + 1] for place in places]
        count = request.params.prompt_logprobs or 0
        request.prompt_logprobs += token_logprobs(rows, tokens, count)


def finish_reason(request: Request, max_model_len: int) -> FinishReason | None:
    """Why the token that the request just got is its last; None: it is not.

    A finished grammar ends a text even before `min_tokens`: there is nothing left to say. If it
    finished in a dead end, nothing that fits can be said, and the request is given up.
    """
    guide = request.guide
    if guide is not None and guide.finished:
        return "stop" if guide.complete else "abort"
    if request.output_ids[-1] in request.stop_ids:
        return "stop"
    full = request.num_tokens >= max_model_len
    return "length" if full or len(request.output_ids) >= request.params.max_tokens else None
