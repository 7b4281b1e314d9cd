"""What a user gets back. Names follow vLLM's offline API.

Invariant: outputs are snapshots: they do not change when the request goes on.
"""

from dataclasses import dataclass

from plamo_ref.engine.request import FinishReason, RequestTimes


@dataclass(frozen=True)
class CompletionOutput:
    """One completion of a prompt."""

    index: int
    text: str
    token_ids: tuple[int, ...]  # with the stop token, if one ended it
    finish_reason: FinishReason | None
    stop_reason: str | int | None  # the stop string or stop token that ended it


@dataclass(frozen=True)
class RequestOutput:
    """A prompt and its completions."""

    request_id: str
    prompt: str | None  # None: the prompt was given as token ids
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    metrics: RequestTimes


@dataclass(frozen=True)
class StreamPiece:
    """What one token added to one request."""

    request_id: str
    index: int  # of the prompt in the call
    token_id: int | None  # None: the request ended without a new token (abort)
    text: str
    finish_reason: FinishReason | None
