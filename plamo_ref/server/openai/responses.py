"""/v1/responses: OpenAI's newer face of a chat, without a memory.

Invariant: a response is a chat's answer, in other words; unstreamed it is the last event of the
streamed one.
"""

import logging
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any

from msgspec.structs import replace
from pydantic import ValidationError

from plamo_ref.remote.calls import Delta
from plamo_ref.server.errors import ApiError, as_api_error, bad
from plamo_ref.server.openai.answers import ReadDetails, ResponseAnswer, ResponseUsage
from plamo_ref.server.openai.chat import Chat
from plamo_ref.server.openai.responses_input import NAMES, as_chat
from plamo_ref.server.openai.responses_output import Event, Output
from plamo_ref.server.openai.responses_schemas import ResponsesRequest
from plamo_ref.server.service import Service
from plamo_ref.server.tools.reader import CallBegins, Text

logger = logging.getLogger(__name__)


class Responding:
    """One request on its way. Make it with `prepare`."""

    def __init__(self, request: ResponsesRequest, chat: Chat, head: ResponseAnswer) -> None:
        self._request, self._chat = request, chat
        (self._turn,) = chat.turns
        self._output = Output()
        self._scores: list[Any] = []  # of tokens whose text has not come out yet
        self._number = 0  # of events
        self._ended: dict[str, Any] = {"status": "in_progress"}
        self._head = head

    @classmethod
    async def prepare(cls, service: Service, request: ResponsesRequest, name: str) -> "Responding":
        """Check everything that can be checked before the engine is asked.

        Args:
            name: of the request.

        Raises:
            ApiError, PlamoRefError: a client's mistake.
        """
        try:
            chat = await Chat.prepare(service, as_chat(request), name)
        except ApiError as error:
            error.param = NAMES.get(error.param or "", error.param)
            raise
        except ValidationError as error:
            first = error.errors()[0]
            field = NAMES.get(str(first["loc"][0]), str(first["loc"][0]))
            raise bad(f"{field}: {first['msg']}", field) from None
        return cls(request, chat, head_of(request, service.config.model_name, name))

    async def whole(self) -> ResponseAnswer:
        """The answer of an unstreamed request."""
        async with aclosing(self._chat.deltas(whole=True)) as coming:
            async for batch in coming:
                for delta in batch:
                    self._read(delta)
        return self._response()

    async def events(self) -> AsyncGenerator[list[Mapping[str, Any]], None]:
        """The events of a streamed request. What goes wrong before the first one is raised; later,
        it is the last event."""
        begun = False
        try:
            async with aclosing(self._chat.deltas(whole=False)) as coming:
                async for batch in coming:
                    opening = [] if begun else self._opening()
                    begun = True
                    changes = [event for delta in batch for event in self._read(delta)]
                    yield self._numbered([*opening, *changes])
        except Exception as error:
            if not begun:
                raise
            yield self._numbered([*self._output.close("incomplete"), self._failed(error)])
            return
        yield self._numbered([self._state(f"response.{self._ended['status']}")])

    def _read(self, delta: Delta) -> list[Event]:
        """What a delta changes."""
        scores = self._chat.logprobs([delta])
        self._scores += scores.content if scores else []
        changes: list[Event] = []
        for piece in self._chat.read(delta):
            call_id = self._turn.calls[piece.index].id if isinstance(piece, CallBegins) else ""
            changes += self._output.add(piece, call_id, self._scores)
            if isinstance(piece, Text):
                self._scores = []
        if delta.finish_reason is not None:
            cut = delta.finish_reason == "length"
            status = "incomplete" if cut else "completed"
            self._ended = {"status": status}
            if cut:
                self._ended["incomplete_details"] = {"reason": "max_output_tokens"}
            changes += self._output.close(status)
        return changes

    def _opening(self) -> list[Event]:
        return [self._state("response.created"), self._state("response.in_progress")]

    def _state(self, kind: str) -> Event:
        return {"type": kind, "response": self._response()}

    def _failed(self, error: Exception) -> Event:
        said = as_api_error(error)
        logger.error("a response failed: %s", error, exc_info=said is not error)
        self._ended = {
            "status": "failed",
            "error": {"code": "server_error", "message": str(said)},
        }
        return self._state("response.failed")

    def _numbered(self, events: Iterable[Event]) -> list[Mapping[str, Any]]:
        numbered: list[Mapping[str, Any]] = []
        for event in events:
            numbered.append({**event, "sequence_number": self._number})
            self._number += 1
        return numbered

    def _response(self) -> ResponseAnswer:
        if self._ended["status"] == "in_progress":
            return self._head
        items, counts = list(self._output.items), self._chat.usage.so_far()
        usage = ResponseUsage(
            input_tokens=counts.prompt_tokens,
            input_tokens_details=ReadDetails(counts.prompt_tokens_details.cached_tokens),
            output_tokens=counts.completion_tokens,
            total_tokens=counts.total_tokens,
        )
        return replace(self._head, output=items, usage=usage, **self._ended)


def head_of(request: ResponsesRequest, model: str, name: str) -> ResponseAnswer:
    """What is known from the beginning: mostly what was asked for."""
    shown = {"text", "tools", "tool_choice"}
    asked = request.model_dump(by_alias=True, exclude_none=True, include=shown)
    return ResponseAnswer(
        id=f"resp_{name}",
        created_at=int(time.time()),
        model=model,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        text={"format": asked.get("text", {}).get("format", {"type": "text"})},
        tools=asked.get("tools", []),
        tool_choice=asked.get("tool_choice", "auto"),
    )
