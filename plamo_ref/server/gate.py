"""What stands before every request: the size of the body, and the key.

Invariant: nothing behind it ever holds more than `max_body_bytes` of a request, and without a key
nobody but `/health` answers. Plain ASGI, so that a disconnect reaches who waits for it.
"""

import hmac
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plamo_ref.server.config import ServerConfig
from plamo_ref.server.errors import ApiError, response_of

OPEN_PATHS = frozenset({"/health"})
# Read and thrown away, so that a client that is still sending gets to read why.
MAX_DISCARDED = 64 << 20


class _TooLargeError(Exception):
    """The body has more bytes than allowed."""


class Gate:
    """Lets a request through, or answers it."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self.app, self._limit = app, config.max_body_bytes
        self._keys = tuple(key.encode() for key in config.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        error = self._refusal(scope, headers)
        if error is not None:
            await _discard(receive, 0)
            challenge = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            await response_of(error, challenge)(scope, receive, send)
            return
        body = _Body(receive, send, self._limit)
        with suppress(_TooLargeError):
            await self.app(scope, body.receive, body.send)
        if body.size > self._limit:  # whatever the app made of it
            await _discard(receive, body.size)
            await response_of(self._too_large())(scope, receive, send)

    def _refusal(self, scope: Scope, headers: MutableMapping[bytes, bytes]) -> ApiError | None:
        preflight = scope["method"] == "OPTIONS"  # browsers send it without the key
        if self._keys and scope["path"] not in OPEN_PATHS and not preflight:
            given = headers.get(b"authorization", b"")
            scheme, _, token = given.partition(b" ")
            # All keys are compared, each in constant time: how long it takes tells nothing.
            matches = [hmac.compare_digest(token.strip(), key) for key in self._keys]
            if scheme.lower() != b"bearer" or not any(matches):
                return ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limit:
            return self._too_large()
        return None

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self._limit:,} bytes"
        return ApiError(413, message, code="body_too_large")


class _Body:
    """Counts what comes in; once it is too much, lets nothing out any more."""

    def __init__(self, receive: Receive, send: Send, limit: int) -> None:
        self._receive, self._send, self._limit = receive, send, limit
        self.size = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.size += len(message.get("body", b""))
        if self.size > self._limit:
            raise _TooLargeError
        return message

    async def send(self, message: Message) -> None:
        if self.size <= self._limit:
            await self._send(message)


async def _discard(receive: Receive, size: int) -> None:
    """Read the rest of a body, up to MAX_DISCARDED bytes, and forget it."""
    message: Any = {"more_body": True}
    while message.get("more_body") and size < MAX_DISCARDED:
        message = await receive()
        size += len(message.get("body", b""))
