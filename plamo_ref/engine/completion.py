"""One completion on its way, seen from outside the core: token ids become text and pieces.

Invariant: the pieces, joined, are the text of the output; the last piece has the finish reason.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from plamo_ref.engine.outputs import (
    CompletionOutput,
    RequestOutput,
    StreamPiece,
    readable_logprobs,
)
from plamo_ref.engine.request import Request
from plamo_ref.text_stream import TextStream
from plamo_ref.tokenizer import Plamo2Tokenizer


@dataclass(eq=False)
class Completion:
    """A request of the core, whose prompt it answers, and its text so far."""

    request: Request
    prompt_index: int  # in the call
    number: int  # 0 to n - 1
    prompt: str | None  # None: given as token ids
    text: TextStream
    pieces: deque[StreamPiece] = field(default_factory=deque)  # not yet taken by the user

    @property
    def finished(self) -> bool:
        return self.request.status == "finished"

    def take_token(self) -> bool:
        """Turn the request's newest token into a piece.

        Returns whether the core has to finish the request, because a stop string has appeared.
        """
        request, token = self.request, self.request.output_ids[-1]
        # With a stop token comes out what the detokenizer still holds.
        ended = token in request.stop_ids
        text = self.text.push_stop(token) if ended else self.text.push(token)
        if self.finished:
            text += self.text.finish()
        stopped = self.text.stopped_by is not None
        if stopped:
            request.finish_reason = "stop"  # also when the string ended in the last token allowed
        self._put(token, text)
        return stopped and not self.finished

    def end(self) -> None:
        """The request was aborted: a last piece without a token."""
        self._put(None, self.text.finish())

    def _put(self, token: int | None, text: str) -> None:
        request = self.request
        self.pieces.append(
            StreamPiece(
                request_id=request.request_id,
                index=self.prompt_index,
                completion=self.number,
                token_id=token,
                text=text,
                finish_reason=request.finish_reason,
            )
        )

    def output(self, tokenizer: Plamo2Tokenizer) -> CompletionOutput:
        """A snapshot."""
        request = self.request
        last = request.output_ids[-1] if request.output_ids else None
        asked = request.params.logprobs is not None
        return CompletionOutput(
            index=self.number,
            text=self.text.text,
            token_ids=tuple(request.output_ids),
            finish_reason=request.finish_reason,
            stop_reason=self.text.stopped_by or (last if last in request.stop_ids else None),
            error=request.error,
            logprobs=readable_logprobs(request.logprobs, tokenizer) if asked else None,
        )


def gather(completions: Sequence[Completion], tokenizer: Plamo2Tokenizer) -> RequestOutput:
    """The completions of one prompt as the user gets them."""
    first = completions[0]
    request = first.request
    asked = request.params.prompt_logprobs is not None
    return RequestOutput(
        request_id=request.request_id.partition(".")[0],
        prompt=first.prompt,
        prompt_token_ids=request.prompt_ids,
        outputs=tuple(completion.output(tokenizer) for completion in completions),
        finished=all(completion.finished for completion in completions),
        metrics=replace(request.times),
        prompt_logprobs=(None, *readable_logprobs(request.prompt_logprobs, tokenizer))
        if asked
        else None,
    )
