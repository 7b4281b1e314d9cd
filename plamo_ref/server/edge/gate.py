"""What stands before every request: the size of the body, the time it takes to come, and the key.

Invariant: nothing behind it ever holds more than `max_body_bytes` of a request or waits longer than
`body_seconds` for it, and without a key nobody but `/health` answers, nor is any of the body read
before the refusal has been sent. Plain ASGI, so that a disconnect reaches who waits for it.

A client that is still sending when the connection is closed may never get to read why: so what it
sends after a refusal is thrown away for a while, and then the connection ends.
"""

import asyncio
import hmac
from collections.abc import Mapping
from contextlib import suppress

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plamo_ref.server.config import ServerConfig
from plamo_ref.server.errors import ApiError, response_of

OPEN_PATHS = frozenset({"/health"})
MAX_DISCARDED = 64 << 20  # bytes thrown away of a body that is too large
LINGER_SECONDS = 5.0  # … and for how long


class _RefusedError(Exception):
    """The body will not do; `_Body.refusal` says why."""


class Gate:
    """Lets a request through, or answers it."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self.app, self._config = app, config
        self._keys = tuple(key.encode() for key in config.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(receive, send, self._config)
        headers = {name.lower(): value for name, value in scope["headers"]}
        body.refusal = self._refusal(scope, headers)
        if body.refusal is None:
            with suppress(_RefusedError):
                await self.app(scope, body.receive, body.send)
        if body.refusal is not None:  # whatever the app made of it
            await self._refuse(body.refusal, body, headers, send)

    async def _refuse(
        self, error: ApiError, body: "_Body", headers: Mapping[bytes, bytes], send: Send
    ) -> None:
        """Answer; then let the client come to the end of its body, within limits."""
        more = body.is_coming(headers)
        response = _answer(error, close=more)
        start = {"type": "http.response.start", "status": response.status_code}
        await send({**start, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": more})
        if more:
            most = MAX_DISCARDED if error.status == 413 else self._config.max_body_bytes
            if headers.get(b"expect", b"").lower() != b"100-continue":  # else it waits for our word
                await body.discard(most)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> ApiError | None:
        preflight = scope["method"] == "OPTIONS"  # browsers send it without the key
        path = scope["path"].removeprefix(self._config.root_path)  # a proxy may have left it
        if self._keys and path not in OPEN_PATHS and not preflight:
            given = headers.get(b"authorization", b"")
            scheme, _, token = given.partition(b" ")
            # All keys are compared, each in constant time: how long it takes tells nothing.
            matches = [hmac.compare_digest(token.strip(), key) for key in self._keys]
            if scheme.lower() != b"bearer" or not any(matches):
                return ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._config.max_body_bytes:
            return too_large(self._config)
        return None


class _Body:
    """Counts what comes in, and watches the clock; once refused, lets nothing out any more."""

    def __init__(self, receive: Receive, send: Send, config: ServerConfig) -> None:
        self._receive, self._send, self._config = receive, send, config
        self._deadline = asyncio.get_running_loop().time() + config.body_seconds
        self._complete, self._size = False, 0
        self.refusal: ApiError | None = None

    async def receive(self) -> Message:
        """The next part; after the last one, the news that the client has gone."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self.refusal = too_slow(self._config)
            raise _RefusedError from None
        self._complete = not message.get("more_body", False)
        self._size += len(message.get("body", b""))
        if self._size > self._config.max_body_bytes:
            self.refusal = too_large(self._config)
            raise _RefusedError
        return message

    async def send(self, message: Message) -> None:
        if self.refusal is None:
            await self._send(message)

    def is_coming(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the client may still be sending."""
        announced = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        return announced and not self._complete

    async def discard(self, most: int) -> None:
        """Read the rest, up to so many bytes and for LINGER_SECONDS, and forget it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._complete and self._size < most:
                    message = await self._receive()
                    self._complete = not message.get("more_body", False)
                    self._size += len(message.get("body", b""))


def too_large(config: ServerConfig) -> ApiError:
    message = f"the body is larger than {config.max_body_bytes:,} bytes"
    return ApiError(413, message, code="body_too_large")


def too_slow(config: ServerConfig) -> ApiError:
    message = f"the body did not come within {config.body_seconds:g} seconds"
    return ApiError(408, message, code="body_too_slow")


def _answer(error: ApiError, *, close: bool) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    if close:  # the rest of the body is no request
        headers["Connection"] = "close"
    return response_of(error, headers)
