"""/v1/completions: prompts in, continuations out, whole or as they come.

Invariant: an unstreamed answer is the streamed one, joined: both are made of the same pieces.
"""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec

from plamo_ref.remote.calls import Delta
from plamo_ref.sampling import SamplingParams
from plamo_ref.server.errors import bad, conflict
from plamo_ref.server.openai.answers import CompletionAnswer, CompletionChoice
from plamo_ref.server.openai.logprobs import CompletionLogprobs, join_columns, prompt_entries
from plamo_ref.server.openai.params import (
    check_model,
    completion_params,
    names_many_tokens,
    stop_reason,
)
from plamo_ref.server.openai.schemas import CompletionRequest, StreamOptions
from plamo_ref.server.openai.usage import Usage
from plamo_ref.server.service import LONG_ANSWER, Service


class Completion:
    """One request on its way. Make it with `prepare`."""

    def __init__(
        self,
        service: Service,
        request: CompletionRequest,
        prompts: Sequence[tuple[str | None, Sequence[int]]],
        params: SamplingParams,
        name: str,
    ) -> None:
        self._service, self._request, self._params = service, request, params
        self._prompts = prompts
        self._tokenizer = service.llm.tokenizer
        self._columns: dict[int, CompletionLogprobs] = {}  # of choices that have begun
        self._usage = Usage(sum(len(ids) for _, ids in prompts), params.n)
        self._head: dict[str, Any] = {
            "id": f"cmpl-{name}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.config.model_name,
        }

    @classmethod
    async def prepare(cls, service: Service, request: CompletionRequest, name: str) -> "Completion":
        """Check everything that can be checked before the engine is asked.

        Args:
            name: of the request.

        Raises:
            ApiError, PlamoRefError: a client's mistake.
        """
        check_model(request.model, service.config)
        prompts = await _prompts(service, request)
        wanted = request.max_completion_tokens  # the newer name decides
        wanted = request.max_tokens if wanted is None else wanted
        wanted = service.config.default_max_tokens if wanted is None else wanted
        if wanted == 0 and not request.echo:
            raise conflict("max_tokens: 0 makes sense only with echo", "max_tokens")
        most = max(service.max_tokens(ids, wanted) for _, ids in prompts)
        work = partial(completion_params, request, service.config, most)
        params = await service.beside(work, names_many_tokens(request))
        return cls(service, request, prompts, params, name)

    async def whole(self) -> CompletionAnswer:
        """The answer of an unstreamed request."""
        pieces: dict[int, list[CompletionChoice]] = {}
        async with aclosing(self._batches(whole=True)) as coming:
            async for batch in coming:
                work = partial(self._pieces, batch)
                for piece in await self._service.beside(work, _has_tables(batch)):
                    pieces.setdefault(piece.index, []).append(piece)

        def join() -> list[CompletionChoice]:
            return [_with_nulls(_join(parts)) for _, parts in sorted(pieces.items())]

        choices = await self._service.beside(join, self._usage.completion_tokens > LONG_ANSWER)
        return CompletionAnswer(**self._head, choices=choices, usage=self._usage.so_far())

    async def events(self) -> AsyncGenerator[list[Mapping[str, Any]], None]:
        """The events of a streamed request: one for each token that has something to show."""
        options = self._request.stream_options
        async with aclosing(self._batches(whole=False)) as coming:
            async for batch in coming:
                work = partial(self._chunks, batch, options)
                yield await self._service.beside(work, _has_tables(batch))
        if options is not None and options.usage:
            yield [{**self._head, "choices": [], "usage": self._usage.so_far()}]

    def _chunks(
        self, batch: Sequence[Delta], options: StreamOptions | None
    ) -> list[Mapping[str, Any]]:
        return [
            {**self._head, "choices": [piece], **self._usage.in_chunk(options)}
            for piece in map(self._piece, batch)  # one by one: each counts a token
            if piece.text or piece.logprobs or piece.finish_reason or self._shows_ids
        ]

    async def _batches(self, *, whole: bool) -> AsyncGenerator[list[Delta], None]:
        ids = [ids for _, ids in self._prompts]
        async with aclosing(self._service.run(ids, self._params, whole=whole)) as batches:
            async for batch in batches:
                yield batch

    @property
    def _shows_ids(self) -> bool:
        return bool(self._request.return_token_ids)

    def _pieces(self, batch: Sequence[Delta]) -> list[CompletionChoice]:
        return [self._piece(delta) for delta in batch]

    def _piece(self, delta: Delta) -> CompletionChoice:
        self._usage.add(delta, 0 if self._generates_nothing else 1)
        if not delta.first:
            return self._new(delta)
        begun = self._begun(delta)
        return begun if self._generates_nothing else _join([begun, self._new(delta)])

    @property
    def _generates_nothing(self) -> bool:
        """The engine makes a token all the same, which nobody sees."""
        return self._request.max_tokens == 0 and self._request.max_completion_tokens is None

    def _new(self, delta: Delta) -> CompletionChoice:
        """What the model has added."""
        scores = None
        if delta.logprobs is not None:
            scores = self._columns_of(delta.index).columns([delta.token_id], [delta.logprobs])
        return CompletionChoice(
            delta.index,
            delta.text,
            scores,
            delta.finish_reason,
            stop_reason(delta, self._params) if delta.finish_reason else msgspec.UNSET,
            token_ids=[delta.token_id] if self._shows_ids else msgspec.UNSET,
        )

    def _columns_of(self, index: int) -> CompletionLogprobs:
        as_ids = bool(self._request.return_tokens_as_token_ids)
        return self._columns.setdefault(index, CompletionLogprobs(self._tokenizer, as_ids=as_ids))

    def _begun(self, delta: Delta) -> CompletionChoice:
        """What a choice says before its first token: the prompt, as far as it was asked for."""
        text, ids = self._prompts[delta.index // self._params.n]
        shown, scores = "", None
        if self._request.echo:
            shown = self._tokenizer.decode(ids, self._params.skip_special_tokens)
            shown = shown if text is None else text
            if self._request.logprobs is not None and delta.prompt_logprobs is not None:
                columns = self._columns_of(delta.index)
                scores = columns.columns(ids, [None, *delta.prompt_logprobs])
        entries: list[Any] | msgspec.UnsetType = msgspec.UNSET
        if self._request.prompt_logprobs is not None and delta.prompt_logprobs is not None:
            entries = prompt_entries(self._tokenizer, delta.prompt_logprobs)
        return CompletionChoice(
            delta.index,
            shown,
            scores,
            "length" if self._generates_nothing else None,
            None if self._generates_nothing else msgspec.UNSET,
            prompt_token_ids=ids if self._shows_ids else msgspec.UNSET,
            token_ids=[] if self._shows_ids else msgspec.UNSET,
            prompt_logprobs=entries,
        )


def _has_tables(batch: Sequence[Delta]) -> bool:
    """Whether log probabilities of a whole prompt are among them."""
    return any(delta.prompt_logprobs for delta in batch)


def _join(parts: Sequence[CompletionChoice]) -> CompletionChoice:
    columns = [part.logprobs for part in parts if part.logprobs is not None]
    first, last = parts[0], parts[-1]
    ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    if first.token_ids is not msgspec.UNSET:
        ids = [token for part in parts for token in part.token_ids or ()]
    return CompletionChoice(
        first.index,
        "".join([part.text for part in parts]),
        join_columns(columns) if columns else None,
        last.finish_reason,
        last.stop_reason,
        first.prompt_token_ids,
        ids,
        first.prompt_logprobs,
    )


def _with_nulls(choice: CompletionChoice) -> CompletionChoice:
    """vLLM's clients look for these fields without asking whether they are there."""
    names = ("prompt_token_ids", "token_ids", "prompt_logprobs")
    absent = {name: None for name in names if getattr(choice, name) is msgspec.UNSET}
    return msgspec.structs.replace(choice, **absent)


async def _prompts(
    service: Service, request: CompletionRequest
) -> list[tuple[str | None, Sequence[int]]]:
    """The prompts as text, where they were text, and as ids."""
    given = request.prompt
    if isinstance(given, str):
        listed: list[str | list[int]] = [given]
    elif given and isinstance(given[0], int):  # then all are
        listed = [given]
    else:
        listed = list(given)  # type: ignore[arg-type]
    if not 1 <= len(listed) <= service.config.max_prompts:
        raise bad(f"prompt: 1 to {service.config.max_prompts} prompts, not {len(listed)}", "prompt")
    texts = [item for item in listed if isinstance(item, str)]
    # None: as the checkpoint says. A client can only turn its BOS off.
    add_bos = False if request.add_special_tokens is False else None
    encoded = iter(await service.encode_all(texts, add_bos=add_bos))
    prompts: list[tuple[str | None, Sequence[int]]] = []
    for item in listed:
        if isinstance(item, str):
            prompts.append((item, next(encoded)))
        else:
            service.check_ids(item, "prompt")
            prompts.append((None, item))
    return prompts
