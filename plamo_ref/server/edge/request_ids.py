"""A name for every request: the client's own, from X-Request-Id, or one that is made.

Invariant: every answer has the header, refusals included; a name that could not stand in a header,
a log or a file's name is replaced, never passed on. Names are for people: the engine has its own
numbers, so that two clients may use the same.
"""

import re
import uuid

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
USABLE = re.compile(rb"[A-Za-z0-9._:@/+=~-]{1,128}")


class RequestIds:
    """Names a request, and says the name in the head of its answer. Plain ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        given = dict(scope["headers"]).get(HEADER.lower().encode(), b"")
        state["named"] = USABLE.fullmatch(given) is not None  # by the client
        state["request_id"] = given.decode() if state["named"] else uuid.uuid4().hex

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = state["request_id"]
            await send(message)

        await self.app(scope, receive, named)


def request_id(request: Request, wanted: str | None) -> str:
    """The name of a request whose body has `wanted` one: the header's, if there was one."""
    state = request.scope["state"]
    if wanted is not None and not state["named"]:
        state["request_id"] = wanted
    name = state["request_id"]
    assert isinstance(name, str)
    return name
