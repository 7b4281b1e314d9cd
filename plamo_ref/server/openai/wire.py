"""Answers on the wire: JSON, server-sent events, and the client that hangs up.

Invariant: work for a client ends when the client does, be it streaming or waiting. A stream's
status is decided by its first event: what goes wrong before it is an ordinary error answer, what
goes wrong later is an event with an `error`, and no `[DONE]` follows it.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from plamo_ref.server.errors import as_api_error, body_of, response_of
from plamo_ref.server.openai.answers import ChatAnswer, CompletionAnswer

T = TypeVar("T")
Events = AsyncGenerator[Sequence[Mapping[str, Any]], None]

DONE = b"data: [DONE]\n\n"
CLIENT_GONE = 499  # nobody reads it
logger = logging.getLogger(__name__)


class HungUpError(Exception):
    """The client has closed its connection."""


def json_response(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


def event(body: Mapping[str, Any] | msgspec.Struct) -> bytes:
    """One server-sent event. JSON has no raw newlines, so it is one `data` line."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def named_event(body: Mapping[str, Any]) -> bytes:
    """The same, with its `type` as the event's name."""
    return b"event: " + body["type"].encode() + b"\n" + event(body)


async def unless_hung_up(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do `work`; cancel it if the client goes away meanwhile.

    Raises:
        HungUpError: it did.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise HungUpError
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def answer(receive: Receive, work: Coroutine[Any, Any, msgspec.Struct]) -> Response:
    """The JSON of what `work` returns."""
    try:
        body = await unless_hung_up(receive, work)
    except HungUpError:
        return Response(status_code=CLIENT_GONE)
    return Response(await encoded(body), media_type="application/json")


async def encoded(body: msgspec.Struct) -> bytes:
    """The JSON of an answer; between two choices, which can be long, others have their turn."""
    if not isinstance(body, CompletionAnswer | ChatAnswer):
        return msgspec.json.encode(body)
    head = msgspec.json.encode(replace(body, choices=[]))
    parts = []
    for choice in body.choices:
        parts.append(msgspec.json.encode(choice))
        await asyncio.sleep(0)
    before, after = head.split(b'"choices":[]', 1)
    return b"".join((before, b'"choices":[', b",".join(parts), b"]", after))


class EventStream(Response):
    """Sends `events` as they come, those that come together in one piece, then `[DONE]`; or, where
    they are `named`, nothing more: their last one says that it is the last."""

    media_type = "text/event-stream"

    def __init__(self, events: Events, *, named: bool = False) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._event, self._done = (named_event, b"") if named else (event, DONE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(HungUpError):
            await unless_hung_up(receive, self._respond(scope, receive, send))

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        async with aclosing(self._events) as events:
            try:
                async for bodies in events:
                    if not bodies:  # half a character, say
                        continue
                    if not started:
                        await self._begin(send)
                        started = True
                    await self._send_part(send, b"".join(map(self._event, bodies)))
                last = self._done
            except Exception as error:
                said = as_api_error(error)
                if said.status >= 500:
                    logger.error("a request failed: %s", error, exc_info=said is not error)
                if not started:
                    await response_of(said)(scope, receive, send)
                    return
                last = event(body_of(said))
            if not started:
                await self._begin(send)
            await self._send_part(send, last)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)

    async def _send_part(self, send: Send, data: bytes) -> None:
        await send({"type": "http.response.body", "body": data, "more_body": True})
