"""What a step did for a request, in messages: one for each token.

Invariant: each token of a request is told once, in its order; the last one brings the reason why
it is the last.
"""

from weakref import WeakKeyDictionary

from plamo_ref.engine.request import Request
from plamo_ref.remote.messages import PromptFacts, Token


class Teller:
    """Makes the messages. `several`: whether a step may give a request more than one token."""

    def __init__(self, several: bool) -> None:
        self._told: WeakKeyDictionary[Request, int] | None = (
            WeakKeyDictionary() if several else None
        )

    def tokens(self, request: Request) -> list[Token]:
        """Of a request that has got some."""
        count, told = len(request.output_ids), self._told
        if told is None:
            return [self._token(request, count - 1)]
        first, told[request] = told.get(request, 0), count
        return [self._token(request, number) for number in range(first, count)]

    def _token(self, request: Request, number: int) -> Token:
        is_last = request.status == "finished" and number + 1 == len(request.output_ids)
        token, params = request.output_ids[number], request.params
        if request.is_plain and number and not is_last:
            return Token(request.request_id, token)  # by far the most
        facts = None
        if not number:
            scores = None if params.prompt_logprobs is None else request.prompt_logprobs
            facts = PromptFacts(request.num_cached_tokens or 0, scores)
        return Token(
            request.request_id,
            token,
            request.finish_reason if is_last else None,
            is_text=token not in request.stop_ids,
            logprobs=None if params.logprobs is None else request.logprobs[number],
            prompt=facts,
        )
