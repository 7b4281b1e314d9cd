"""/v1/chat/completions: a conversation in, the assistant's next turn out.

Invariant: an unstreamed answer is the streamed one, joined: both are made of the same deltas.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from plamo_ref.engine.calls import Delta, GrammarRefusedError
from plamo_ref.sampling import SamplingParams
from plamo_ref.server.conversation import for_template
from plamo_ref.server.errors import bad
from plamo_ref.server.logprobs import chat_entry
from plamo_ref.server.params import chat_params, check_model
from plamo_ref.server.schemas import ChatMessage, ChatRequest
from plamo_ref.server.service import Service
from plamo_ref.server.templates import ChatTemplate
from plamo_ref.server.tools import ToolPlan, check_calls, plan_tools, refused_grammar
from plamo_ref.server.turn import Turn


class Chat:
    """One request on its way. Make it with `prepare`."""

    def __init__(
        self,
        service: Service,
        request: ChatRequest,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        plan: ToolPlan | None = None,
    ) -> None:
        self._service, self._request, self._params = service, request, params
        self._prompt_ids, self._plan = prompt_ids, plan
        self.turns = [Turn(plan) for _ in range(params.n)]
        self._num_generated = 0
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
        }

    @classmethod
    async def prepare(cls, service: Service, request: ChatRequest) -> "Chat":
        """Check everything that can be checked before the engine is asked.

        Raises:
            ApiError, PlamoRefError: a client's mistake.
        """
        check_model(request.model, service.config)
        template = chat_template(service)
        plan = None
        if request.tools or request.tool_choice is not None:
            # Schemas can be long, and so can be making a grammar of them.
            plan = await asyncio.to_thread(plan_tools, request, template.tools, service.config)
        shown = None if plan is None else plan.shown
        ids = await chat_ids(service, request.messages, request.chat_template_kwargs, shown)
        # The newer name decides, but the older one beside it must not be nonsense.
        most = service.max_tokens(ids, request.max_tokens)
        if request.max_completion_tokens is not None:
            most = service.max_tokens(ids, request.max_completion_tokens)
        params = chat_params(request, service.config, most, plan.grammar if plan else None)
        params = template.with_stops(params, service.llm.tokenizer)
        if plan is not None:
            params = plan.with_marks(params, service.llm.tokenizer)
        return cls(service, request, ids, params, plan)

    async def whole(self) -> Mapping[str, Any]:
        """The answer of an unstreamed request."""
        deltas: dict[int, list[Delta]] = {}
        async with aclosing(self.deltas(whole=True)) as coming:
            async for batch in coming:
                for delta in batch:
                    deltas.setdefault(delta.index, []).append(delta)
        choices = [self._choice(parts) for _, parts in sorted(deltas.items())]
        body = {**self._head, "object": "chat.completion", "choices": choices}
        return {**body, "usage": self.usage()}

    def _choice(self, parts: Sequence[Delta]) -> dict[str, Any]:
        turn = self.turns[parts[0].index]
        for part in parts:
            turn.read(part)
        return {
            "index": parts[0].index,
            "message": turn.message(),
            "logprobs": self.logprobs(parts),
            "finish_reason": turn.finish_reason(parts[-1]),
        }

    async def events(self) -> AsyncGenerator[list[Mapping[str, Any]], None]:
        """The events of a streamed request: a role first, then one for each token, then its end."""
        options = self._request.stream_options
        wants_usage = options is not None and options.include_usage
        head = {**self._head, "object": "chat.completion.chunk"}
        null = {"usage": None} if wants_usage else {}
        async with aclosing(self.deltas(whole=False)) as coming:
            async for batch in coming:
                chunks = [chunk for delta in batch for chunk in self._chunks(delta)]
                yield [{**head, "choices": [chunk], **null} for chunk in chunks]
        if wants_usage:
            yield [{**head, "choices": [], "usage": self.usage()}]

    def _chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        turn = self.turns[delta.index]
        if delta.first:
            yield _chunk(delta.index, {"role": "assistant", "content": ""})
        scores = self.logprobs([delta])
        pieces = [turn.chunk(piece) for piece in turn.read(delta)]
        if scores and not pieces:
            pieces = [{"content": ""}]
        for piece in pieces:
            yield _chunk(delta.index, piece, scores)
            scores = None
        if delta.finish_reason is not None:
            yield _chunk(delta.index, {}, None, turn.finish_reason(delta))

    async def deltas(self, *, whole: bool) -> AsyncGenerator[list[Delta], None]:
        """What the engine gives, to be read by the turns."""
        run = self._service.run([self._prompt_ids], self._params, whole=whole)
        try:
            async with aclosing(run) as batches:
                async for batch in batches:
                    self._num_generated += len(batch)
                    yield batch
        except GrammarRefusedError as error:
            if self._plan is not None and self._plan.grammar is not None:
                raise refused_grammar(error) from None
            raise

    def logprobs(self, parts: Sequence[Delta]) -> dict[str, Any] | None:
        """Of the tokens of these deltas, if they were asked for."""
        tokenizer = self._service.llm.tokenizer
        scores = [part.logprobs for part in parts if part.logprobs is not None]
        entries = [chat_entry(tokenizer, score) for score in scores]
        return {"content": entries, "refusal": None} if entries else None

    def usage(self) -> dict[str, int]:
        """Tokens so far."""
        prompt = len(self._prompt_ids)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._num_generated,
            "total_tokens": prompt + self._num_generated,
        }


def _chunk(
    index: int,
    delta: Mapping[str, Any],
    logprobs: Mapping[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


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


async def chat_ids(
    service: Service,
    messages: Sequence[ChatMessage],
    extra: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """The conversation as the model sees it.

    Raises:
        ApiError: there is no template, or it refuses the messages.
    """
    template = chat_template(service)
    check_calls(messages, template.tools)
    plain = [for_template(message) for message in messages]
    text = template.render(plain, extra or {}, tools)
    return await service.encode(text, add_bos=template.add_bos(text))
