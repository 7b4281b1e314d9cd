"""What a token means for its request: whether it is the last, and whether the host must know it
before the next one is chosen.

Invariant: each answer follows from the request alone; nothing here waits for a device.
"""

import time

from plamo_ref.engine.request import FinishReason, Request
from plamo_ref.sampling import GuidedError, SamplingParams


def needs_host(request: Request, has_tables: bool = False) -> bool:
    """Whether the host must know a request's last token before it can choose the next one.

    A bias is fixed and `min_tokens` only counts; penalties, grammars and processors look at the
    tokens, and log probabilities are read from logits that the next step overwrites. Tables on the
    device take what penalties look at from the device.
    """
    params = request.params
    if request.is_plain:
        return False  # by far the most
    return bool(
        request.guide is not None
        or params.logits_processors
        or params.logprobs is not None
        or (params.penalises and not has_tables)
        or (params.prompt_logprobs is not None and request.unscored(0, len(request.prompt_ids)))
    )


def finish_reason(request: Request) -> FinishReason | None:
    """Why the token that the request just got is its last; None: it is not.

    A finished grammar ends a text even before `min_tokens`: there is nothing left to say. If it has
    come to a dead end, nothing that fits can be said: an error, of this request alone.
    """
    guide, output = request.guide, request.output_ids
    if not output:
        return None  # computed again after an error, and not come so far
    if guide is not None:
        if guide.error is not None:
            raise GuidedError(guide.error)
        if guide.finished:
            return "stop"
    if output[-1] in request.stop_ids:
        return "stop"
    return "length" if len(output) >= request.max_output_tokens else None


def awaits_guide(request: Request, end: float) -> bool:
    """Whether a request's grammar has not said by `end` (monotonic seconds) what its token means;
    the request says so, too."""
    guide = request.guide
    request.awaits_guide = guide is not None and not guide.wait(end - time.monotonic())
    return request.awaits_guide


def is_leaving(request: Request) -> bool:
    """Whether nothing more has to be computed for a request: its last token is under way, and the
    host knows every token that it was computed from."""
    if request.num_output_tokens < request.max_output_tokens:
        return False  # by far the most
    known = request.num_computed_tokens <= request.num_known_tokens
    return known and request.status != "finished"


def most_outputs(prompt_len: int, params: SamplingParams, max_model_len: int) -> int:
    """Tokens after which a request ends, whatever they are."""
    most = max_model_len - prompt_len
    return most if params.max_tokens is None else min(most, params.max_tokens)
