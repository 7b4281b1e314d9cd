"""/v1/chat/completions: a conversation in, the assistant's next turn out.

Invariant: an unstreamed answer is the streamed one, joined: both are made of the same deltas.
"""

import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, NamedTuple

from plamo_ref.chat.borders import borders
from plamo_ref.chat.templates import ChatTemplate
from plamo_ref.remote.calls import Delta, GrammarRefusedError
from plamo_ref.sampling import SamplingParams
from plamo_ref.server.errors import bad
from plamo_ref.server.openai.answers import ChatAnswer, ChatChoice, ChatTokens
from plamo_ref.server.openai.logprobs import chat_entry, prompt_entries
from plamo_ref.server.openai.params import chat_params, check_model, names_many_tokens, stop_reason
from plamo_ref.server.openai.schemas import ChatRequest, Conversation
from plamo_ref.server.openai.usage import Usage
from plamo_ref.server.prompt.conversation import for_template
from plamo_ref.server.prompt.rendering import render
from plamo_ref.server.prompt.turn import Turn
from plamo_ref.server.service import LONG_ANSWER, LONG_TEXT, Service
from plamo_ref.server.tools.offered import ToolPlan, check_calls, plan_tools, refused_grammar
from plamo_ref.server.tools.reader import Piece

MANY_PARTS = 256  # of a conversation, whose rendering would keep the event loop too long


class Chat:
    """One request on its way. Make it with `prepare`."""

    def __init__(
        self,
        service: Service,
        request: ChatRequest,
        prompt: "ChatPrompt",
        params: SamplingParams,
        name: str,
        plan: ToolPlan | None = None,
    ) -> None:
        self._service, self._request, self._params = service, request, params
        self._prompt, self._plan = prompt, plan
        self.turns = [Turn(plan) for _ in range(params.n)]
        self.usage = Usage(len(prompt.ids), params.n)
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{name}",
            "created": int(time.time()),
            "model": service.config.model_name,
        }

    @classmethod
    async def prepare(cls, service: Service, request: ChatRequest, name: str) -> "Chat":
        """Check everything that can be checked before the engine is asked.

        Args:
            name: of the request.

        Raises:
            ApiError, PlamoRefError: a client's mistake.
        """
        check_model(request.model, service.config)
        template = chat_template(service)
        plan = None
        if request.tools or request.tool_choice is not None:
            # Schemas can be long, and so can be making a grammar of them.
            plan = await service.workers.run(plan_tools, request, template.tools, service.config)
        shown = None if plan is None else plan.shown
        prompt = await chat_prompt(service, request, shown)
        # The newer name decides, but the older one beside it must not be nonsense.
        most = service.max_tokens(prompt.ids, request.max_tokens)
        if request.max_completion_tokens is not None:
            most = service.max_tokens(prompt.ids, request.max_completion_tokens)

        def work() -> SamplingParams:
            params = chat_params(request, service.config, most, plan.grammar if plan else None)
            params = template.with_stops(params, service.llm.tokenizer)
            return params if plan is None else plan.with_marks(params, service.llm.tokenizer)

        params = await service.beside(work, names_many_tokens(request))
        return cls(service, request, prompt, params, name, plan)

    async def whole(self) -> ChatAnswer:
        """The answer of an unstreamed request."""
        deltas: dict[int, list[Delta]] = {}
        async with aclosing(self.deltas(whole=True)) as coming:
            async for batch in coming:
                for delta in batch:
                    deltas.setdefault(delta.index, []).append(delta)
        first = next(iter(deltas.values()))[0]
        count = sum(map(len, deltas.values()))

        def choices() -> list[ChatChoice]:
            return [self._choice(parts) for _, parts in sorted(deltas.items())]

        return ChatAnswer(
            **self._head,
            object="chat.completion",
            choices=await self._service.beside(choices, count > LONG_ANSWER),
            usage=self.usage.so_far(),
            **self._ids_of_prompt(),
            **self._prompt_logprobs(first),
        )

    def _choice(self, parts: Sequence[Delta]) -> ChatChoice:
        turn = self.turns[parts[0].index]
        for part in parts:
            self.read(part)
        return ChatChoice(
            index=parts[0].index,
            message=turn.message(),
            logprobs=self.logprobs(parts),
            finish_reason=turn.finish_reason(parts[-1]),
            stop_reason=stop_reason(parts[-1], self._params),
            **self._token_ids(parts),
        )

    async def events(self) -> AsyncGenerator[list[Mapping[str, Any]], None]:
        """The events of a streamed request: a role first, then what each token has to show; the
        last says why it ended."""
        options = self._request.stream_options
        async with aclosing(self.deltas(whole=False)) as coming:
            async for batch in coming:
                yield [event for delta in batch for event in self._events(delta)]
        if options is not None and options.usage:
            yield [self._event([], {"usage": self.usage.so_far()})]

    def _events(self, delta: Delta) -> Iterator[dict[str, Any]]:
        turn, index, ended = self.turns[delta.index], delta.index, delta.finish_reason is not None
        if delta.first:
            role = _chunk(index, {"role": "assistant", "content": ""})
            yield self._event([role], self._ids_of_prompt())
        pieces = [turn.chunk(piece) for piece in self.read(delta)]
        scores, ids = self.logprobs([delta]), self._token_ids([delta])
        if not pieces and (scores or ids or ended):
            pieces = [{"content": ""} if scores else {}]
        for left, piece in enumerate(pieces, start=1 - len(pieces)):  # 0: the last one
            chunk = _chunk(index, piece, scores) | ids
            scores, ids = None, {}
            if ended and left == 0:
                reasons = turn.finish_reason(delta), stop_reason(delta, self._params)
                chunk["finish_reason"], chunk["stop_reason"] = reasons
            yield self._event([chunk])

    def _event(
        self, choices: Sequence[Mapping[str, Any]], more: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        usage = self.usage.in_chunk(self._request.stream_options)
        head = {**self._head, "object": "chat.completion.chunk", "choices": choices}
        return {**head, **usage, **(more or {})}

    def _token_ids(self, parts: Sequence[Delta]) -> dict[str, list[int]]:
        wanted = self._request.return_token_ids
        return {"token_ids": [part.token_id for part in parts]} if wanted else {}

    def _ids_of_prompt(self) -> dict[str, Any]:
        wanted = self._request.return_token_ids
        return {"prompt_token_ids": self._prompt.ids} if wanted else {}

    def _prompt_logprobs(self, first: Delta) -> dict[str, Any]:
        scores = first.prompt_logprobs
        if self._request.prompt_logprobs is None or scores is None:
            return {}
        return {"prompt_logprobs": prompt_entries(self._service.llm.tokenizer, scores)}

    def read(self, delta: Delta) -> list[Piece]:
        """What a delta adds to its turn. Each is to be read once."""
        self.usage.add(delta)
        return self.turns[delta.index].read(delta)

    async def deltas(self, *, whole: bool) -> AsyncGenerator[list[Delta], None]:
        """What the engine gives, to be read by the turns."""
        prompt, params = self._prompt, self._params
        run = self._service.run([prompt.ids], params, whole=whole, borders=prompt.borders)
        try:
            async with aclosing(run) as batches:
                async for batch in batches:
                    yield batch
        except GrammarRefusedError as error:
            if self._plan is not None and self._plan.grammar is not None:
                raise refused_grammar(error) from None
            raise

    def logprobs(self, parts: Sequence[Delta]) -> ChatTokens | None:
        """Of the tokens of these deltas, if they were asked for."""
        tokenizer = self._service.llm.tokenizer
        scores = [part.logprobs for part in parts if part.logprobs is not None]
        as_ids = bool(self._request.return_tokens_as_token_ids)
        entries = [chat_entry(tokenizer, score, as_ids=as_ids) for score in scores]
        return ChatTokens(entries) if entries else None


def _chunk(
    index: int, delta: Mapping[str, Any], logprobs: ChatTokens | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def chat_template(service: Service) -> ChatTemplate:
    """The template of the model that is served.

    Raises:
        ApiError: it has none.
    """
    if service.template is None:
        raise bad(
            "this model has no chat template: use /v1/completions, or start the server with "
            "--chat-template",
            "messages",
            "no_chat_template",
        )
    return service.template


class ChatPrompt(NamedTuple):
    """A conversation as the model sees it."""

    ids: list[int]
    borders: Sequence[int]  # see borders.py


async def chat_prompt(
    service: Service, asked: Conversation, tools: Sequence[Mapping[str, Any]] | None = None
) -> ChatPrompt:
    """The conversation as the model sees it, with these tools.

    Raises:
        ApiError: there is no template, or it refuses the messages, or would drop something.
    """
    template = chat_template(service)
    check_calls(asked.messages, template.tools)

    def work() -> tuple[list[dict[str, Any]], str]:
        plain = [for_template(message) for message in asked.messages]
        return plain, render(template, plain, asked, tools)

    messages = asked.messages
    parts = sum(len(m.content) if isinstance(m.content, list) else 1 for m in messages)
    plain, text = await service.beside(work, parts > MANY_PARTS)
    add_bos = False if asked.add_special_tokens is False else template.add_bos(text)
    ids = await service.encode(text, add_bos=add_bos)
    find = partial(borders, plain, text, ids, service.llm.tokenizer)
    return ChatPrompt(ids, await service.beside(find, len(text) > LONG_TEXT))
