"""One completion on its way, seen from outside the core: token ids become text and pieces.

Where nobody reads them, no pieces are made; where no stop string could end it either, the text is
made at once when all its tokens are there.

Invariant: the pieces, joined, are the text of the output; the last piece has the finish reason.
There is one for each token that was taken, so they also say which comes next: `rebuild` makes the
rest of the state from them. A text without pieces is made anew from its first token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from plamo_ref.engine.outputs import (
    CompletionOutput,
    RequestOutput,
    StreamPiece,
    readable_logprobs,
)
from plamo_ref.engine.prompts import Asked
from plamo_ref.engine.request import FinishReason, Request
from plamo_ref.text.stream import TextStream
from plamo_ref.text.tokenizer import Plamo2Tokenizer


@dataclass(eq=False)
class Completion:
    """A request of the core, whose prompt it answers, and its text so far."""

    request: Request
    asked: Asked
    tokenizer: Plamo2Tokenizer
    streams: bool = True  # somebody reads its pieces
    pieces: list[StreamPiece] = field(default_factory=list)
    num_read: int = 0  # pieces that the user has

    def __post_init__(self) -> None:
        # Before its end nothing has to be done for it.
        self.is_quiet = not (self.streams or self.request.params.stop)
        self.rebuild()

    def rebuild(self) -> None:
        """Make the text anew, as it was after the last piece."""
        text = TextStream(self.tokenizer, self.request.params)
        for piece in self.pieces:
            if piece.token_id is not None and piece.token_id not in self.request.stop_ids:
                text.push(piece.token_id)
            if piece.finish_reason is not None:
                text.finish()
        self.text, self.num_taken = text, sum(p.token_id is not None for p in self.pieces)

    @property
    def finished(self) -> bool:
        return self.request.status == "finished"

    def take_tokens(self) -> bool:
        """Turn the tokens that have come into text, mostly one.

        Returns whether the core has to finish the request, because a stop string has appeared.
        """
        tokens, stop_ids = self.request.output_ids, self.request.stop_ids
        if self.is_quiet:
            if self.finished and self.num_taken < len(tokens):
                self.text.take_all(tokens, ends_in_stop=tokens[-1] in stop_ids)
                self.num_taken = len(tokens)
            return False
        # Whether a token is the last is for the grammar to say, if it has not yet.
        told = len(tokens) - self.request.awaits_guide
        while self.num_taken < told and self.text.stopped_by is None:
            self._take(tokens[self.num_taken])
        return self.text.stopped_by is not None and not self.finished

    def _take(self, token: int) -> None:
        request = self.request
        is_last = self.finished and self.num_taken + 1 == len(request.output_ids)
        text = self.text.take(token, is_stop=token in request.stop_ids, is_last=is_last)
        if self.text.stopped_by is not None:
            request.finish_reason = "stop"  # also when the string ended in the last token allowed
            is_last = True
        if self.streams:
            self._put(token, text, request.finish_reason if is_last else None)
        self.num_taken += 1

    def unread(self) -> Iterator[StreamPiece]:
        """What the user has not had yet."""
        while self.num_read < len(self.pieces):
            self.num_read += 1
            yield self.pieces[self.num_read - 1]

    def end(self) -> None:
        """The request was aborted: a last piece without a token."""
        if not self.streams:
            self.take_tokens()
            self.text.finish()
        elif not self.pieces or self.pieces[-1].finish_reason is None:
            self._put(None, self.text.finish(), self.request.finish_reason)

    def _put(self, token: int | None, text: str, reason: FinishReason | None) -> None:
        request = self.request
        self.pieces.append(
            StreamPiece(
                request_id=request.request_id,
                index=self.asked.prompt_index,
                completion=self.asked.number,
                token_id=token,
                text=text,
                finish_reason=reason,
            )
        )

    def output(self, tokenizer: Plamo2Tokenizer) -> CompletionOutput:
        """A snapshot."""
        request = self.request
        outputs = request.output_ids
        if self.text.stopped_by is not None:
            outputs = outputs[: self.num_taken]  # further ones may have come in the same step
        last = outputs[-1] if outputs else None
        asked = request.params.logprobs is not None
        return CompletionOutput(
            index=self.asked.number,
            text=self.text.text,
            token_ids=tuple(outputs),
            finish_reason=request.finish_reason,
            stop_reason=self.text.stopped_by or (last if last in request.stop_ids else None),
            error=None if request.error is None else str(request.error),
            logprobs=readable_logprobs(request.logprobs, tokenizer) if asked else None,
        )


def gather(completions: Sequence[Completion], tokenizer: Plamo2Tokenizer) -> RequestOutput:
    """The completions of one prompt as the user gets them."""
    first = completions[0]
    request = first.request
    asked = request.params.prompt_logprobs is not None
    return RequestOutput(
        request_id=request.request_id.partition(".")[0],
        prompt=first.asked.prompt,
        prompt_token_ids=request.prompt_ids,
        outputs=tuple(completion.output(tokenizer) for completion in completions),
        finished=all(completion.finished for completion in completions),
        metrics=replace(request.times),
        prompt_logprobs=(None, *readable_logprobs(request.prompt_logprobs, tokenizer))
        if asked
        else None,
        num_cached_tokens=request.num_cached_tokens,
    )
