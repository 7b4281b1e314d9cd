"""/v1/completions: prompts in, continuations out, whole or as they come.

Invariant: an unstreamed answer is the streamed one, joined: both are made of the same pieces.
"""

import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from plamo_ref.engine.calls import Delta
from plamo_ref.sampling import SamplingParams
from plamo_ref.server.errors import bad, conflict
from plamo_ref.server.logprobs import CompletionLogprobs, join_columns
from plamo_ref.server.params import check_model, completion_params
from plamo_ref.server.schemas import CompletionRequest
from plamo_ref.server.service import Service


class Piece(msgspec.Struct, frozen=True):
    """What a choice grew by. In JSON it is a choice."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class Completion:
    """One request on its way. Make it with `prepare`."""

    def __init__(
        self,
        service: Service,
        request: CompletionRequest,
        prompts: Sequence[tuple[str | None, Sequence[int]]],
        params: SamplingParams,
    ) -> None:
        self._service, self._request, self._params = service, request, params
        self._prompts = prompts
        self._tokenizer = service.llm.tokenizer
        self._columns: dict[int, CompletionLogprobs] = {}  # of choices that have begun
        self._num_generated = 0
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": request.model,
        }

    @classmethod
    async def prepare(cls, service: Service, request: CompletionRequest) -> "Completion":
        """Check everything that can be checked before the engine is asked.

        Raises:
            ApiError, PlamoRefError: a client's mistake.
        """
        check_model(request.model, service.config)
        prompts = await _prompts(service, request)
        wanted = request.max_tokens
        wanted = service.config.default_max_tokens if wanted is None else wanted
        if wanted == 0 and not request.echo:
            raise conflict("max_tokens: 0 makes sense only with echo", "max_tokens")
        most = max(service.max_tokens(ids, wanted) for _, ids in prompts)
        return cls(service, request, prompts, completion_params(request, service.config, most))

    async def whole(self) -> Mapping[str, Any]:
        """The answer of an unstreamed request."""
        pieces: dict[int, list[Piece]] = {}
        async with aclosing(self._pieces(whole=True)) as coming:
            async for batch in coming:
                for piece in batch:
                    pieces.setdefault(piece.index, []).append(piece)
        choices = [_join(parts) for _, parts in sorted(pieces.items())]
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncGenerator[list[Mapping[str, Any]], None]:
        """The events of a streamed request: one for each token that has something to show."""
        options = self._request.stream_options
        wants_usage = options is not None and options.include_usage
        null = {"usage": None} if wants_usage else {}
        async with aclosing(self._pieces(whole=False)) as coming:
            async for batch in coming:
                yield [
                    {**self._head, "choices": [piece], **null}
                    for piece in batch
                    if piece.text or piece.logprobs or piece.finish_reason
                ]
        if wants_usage:
            yield [{**self._head, "choices": [], "usage": self._usage()}]

    async def _pieces(self, *, whole: bool) -> AsyncGenerator[list[Piece], None]:
        ids = [ids for _, ids in self._prompts]
        async with aclosing(self._service.run(ids, self._params, whole=whole)) as batches:
            async for batch in batches:
                yield [self._piece(delta) for delta in batch]

    def _piece(self, delta: Delta) -> Piece:
        if not delta.first or not self._request.echo:
            return self._new(delta)
        echo = self._echo(delta)
        return echo if self._request.max_tokens == 0 else _join([echo, self._new(delta)])

    def _new(self, delta: Delta) -> Piece:
        """What the model has added."""
        self._num_generated += 1
        scores = None
        if delta.logprobs is not None:
            scores = self._columns_of(delta.index).columns([delta.token_id], [delta.logprobs])
        return Piece(delta.index, delta.text, scores, delta.finish_reason)

    def _columns_of(self, index: int) -> CompletionLogprobs:
        return self._columns.setdefault(index, CompletionLogprobs(self._tokenizer))

    def _echo(self, delta: Delta) -> Piece:
        """The prompt as the first part of a choice."""
        text, ids = self._prompts[delta.index // self._params.n]
        shown = self._tokenizer.decode(ids, self._params.skip_special_tokens)
        scores = None
        if delta.prompt_logprobs is not None:
            columns = self._columns_of(delta.index)
            scores = columns.columns(ids, [None, *delta.prompt_logprobs])
        end = "length" if self._request.max_tokens == 0 else None
        return Piece(delta.index, shown if text is None else text, scores, end)

    def _usage(self) -> dict[str, int]:
        prompt = sum(len(ids) for _, ids in self._prompts)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._num_generated,
            "total_tokens": prompt + self._num_generated,
        }


def _join(parts: Sequence[Piece]) -> Piece:
    columns = [part.logprobs for part in parts if part.logprobs is not None]
    return Piece(
        parts[0].index,
        "".join([part.text for part in parts]),
        join_columns(columns) if columns else None,
        parts[-1].finish_reason,
    )


async def _prompts(
    service: Service, request: CompletionRequest
) -> list[tuple[str | None, Sequence[int]]]:
    """The prompts as text, where they were text, and as ids."""
    given = request.prompt
    if isinstance(given, str):
        listed: list[str | list[int]] = [given]
    elif given and all(isinstance(item, int) for item in given):
        listed = [given]  # type: ignore[list-item]
    else:
        listed = list(given)  # type: ignore[arg-type]
    if not 1 <= len(listed) <= service.config.max_prompts:
        raise bad(f"prompt: 1 to {service.config.max_prompts} prompts, not {len(listed)}", "prompt")
    prompts: list[tuple[str | None, Sequence[int]]] = []
    for item in listed:
        if isinstance(item, str):
            # None: as the checkpoint says. A client can only turn its BOS off.
            add_bos = False if request.add_special_tokens is False else None
            prompts.append((item, await service.encode(item, add_bos=add_bos)))
        else:
            service.check_ids(item, "prompt")
            prompts.append((None, item))
    return prompts
