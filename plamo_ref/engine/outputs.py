"""What a user gets back. Names follow vLLM's offline API.

Invariant: outputs are snapshots: they do not change when the request goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from plamo_ref.engine.request import FinishReason, RequestTimes
from plamo_ref.sampling import TokenLogprobs
from plamo_ref.text.tokenizer import Plamo2Tokenizer


@dataclass(frozen=True)
class Logprob:
    """How likely a token was in its place."""

    logprob: float
    rank: int  # 1: the most likely
    decoded_token: str


@dataclass(frozen=True)
class CompletionOutput:
    """One completion of a prompt."""

    index: int
    text: str
    token_ids: tuple[int, ...]  # with the stop token, if one ended it
    finish_reason: FinishReason | None
    stop_reason: str | int | None  # the stop string or stop token that ended it
    logprobs: tuple[dict[int, Logprob], ...] | None = None  # one for each of token_ids
    error: str | None = None  # what went wrong, where the finish reason is "error"


@dataclass(frozen=True)
class RequestOutput:
    """A prompt and its completions."""

    request_id: str
    prompt: str | None  # None: the prompt was given as token ids
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    metrics: RequestTimes  # of the first completion
    prompt_logprobs: tuple[dict[int, Logprob] | None, ...] | None = None  # None for the first token
    # Tokens of the prompt that were found computed already, for the first completion; None: it has
    # not begun.
    num_cached_tokens: int | None = None


@dataclass(frozen=True)
class StreamPiece:
    """What one token added to one request."""

    request_id: str
    index: int  # of the prompt in the call
    completion: int  # 0 to n - 1
    token_id: int | None  # None: the request ended without a new token (abort)
    text: str
    finish_reason: FinishReason | None


def readable_logprobs(
    scores: Sequence[TokenLogprobs], tokenizer: Plamo2Tokenizer
) -> tuple[dict[int, Logprob], ...]:
    """For each token, itself and its alternatives by id, with their texts. It is the first, as in
    vLLM: readers take the first value for that of the token."""
    readable = []
    for score in scores:
        best = {score.token_id: (score.logprob, score.rank)}
        for rank, (token, value) in enumerate(score.top, start=1):
            best.setdefault(token, (value, rank))
        readable.append(
            {t: Logprob(value, rank, tokenizer.decode([t])) for t, (value, rank) in best.items()}
        )
    return tuple(readable)
