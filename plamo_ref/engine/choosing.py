"""From a step's logits to tokens, log probabilities, and the reason to stop.

Invariant: a request's token depends on its own row, parameters, seed and tokens, nothing else.
"""

from collections.abc import Sequence

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
    for row, (request, token) in enumerate(zip(requests, tokens, strict=True)):
        if request.params.logprobs is not None:
            request.logprobs += token_logprobs(
                logits[row : row + 1], [token], request.params.logprobs
            )
    return tokens


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
    """Why the token that the request just got is its last; None: it is not."""
    if request.output_ids[-1] in request.stop_ids:
        return "stop"
    if request.guide is not None and request.guide.finished:
        return "stop"
    full = request.num_tokens >= max_model_len
    return "length" if full or len(request.output_ids) >= request.params.max_tokens else None
