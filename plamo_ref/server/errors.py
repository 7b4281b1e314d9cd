"""Everything that can go wrong, as a status and a body in OpenAI's shape.

Invariant: a client never sees a traceback, and what it sent is never repeated to it unescaped, nor
at length.
"""

import json
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from plamo_ref.errors import PlamoRefError
from plamo_ref.grammar.guided import GuidedError
from plamo_ref.remote.calls import (
    EngineBusyError,
    EngineDiedError,
    EngineUnavailableError,
    GrammarRefusedError,
    RequestRefusedError,
    SlowReaderError,
)
from plamo_ref.server.edge.complaints import complaint

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
STATUS_OF: dict[type[Exception], int] = {
    RequestRefusedError: 400,
    EngineBusyError: 429,
    EngineUnavailableError: 503,
    EngineDiedError: 500,
    SlowReaderError: 500,
}
RETRY = {429: "1", 503: "2"}  # seconds
MAX_MESSAGE = 1000  # characters; a name that a client made up may have millions
MAX_PARAM = 200


class ErrorDetail(msgspec.Struct, frozen=True):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is no success."""

    error: ErrorDetail


class ApiError(PlamoRefError):
    """An answer that is no success. `param` names the field, `code` is for programs."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The client can mend it."""
    return ApiError(400, message, param, code)


def conflict(message: str, param: str | None = None) -> ApiError:
    """Fields that are right each on its own, and cannot go together."""
    return bad(message, param, "invalid_combination")


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about `error`."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, GuidedError | GrammarRefusedError):
        return bad(str(error), code="unsupported_grammar")
    for kind, status in STATUS_OF.items():
        if isinstance(error, kind):
            return ApiError(status, str(error), code=HTTPStatus(status).name.lower())
    if isinstance(error, PlamoRefError):  # a parameter that cannot be, found further down
        return bad(str(error))
    return ApiError(500, "an internal error; the server's log has more", code="internal_error")


def body_of(error: ApiError) -> ErrorBody:
    kind = KINDS.get(error.status, "server_error")
    param = None if error.param is None else shortened(error.param, MAX_PARAM)
    message = shortened(str(error), MAX_MESSAGE)
    return ErrorBody(ErrorDetail(message, kind, param, error.code))


def response_of(error: ApiError, headers: dict[str, str] | None = None) -> Response:
    headers = dict(headers or {})
    if error.status in RETRY:
        headers["Retry-After"] = RETRY[error.status]
    # ASCII: whatever the message quotes, half a surrogate pair included, can be sent.
    body = json.dumps(msgspec.to_builtins(body_of(error)), ensure_ascii=True).encode("ascii")
    return Response(body, error.status, headers, media_type="application/json")


def shortened(text: str, most: int) -> str:
    """A text of at most `most` characters: its beginning, and its end."""
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[len(text) - (most - head - 1) :]}"


def invalid(error: ValidationError, body: Any) -> ApiError:
    """What does not fit in `body`, and where, without what was there."""
    return bad(*complaint(error.errors(include_url=False, include_input=False), body))


def install(app: FastAPI) -> None:
    """Let every error of the app leave in OpenAI's shape."""

    async def on_http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        status = 400 if error.status_code == 422 else error.status_code
        return response_of(ApiError(status, str(error.detail)), headers)

    async def on_ours(request: Request, error: Exception) -> Response:
        # What is no error of ours is answered outside of every middleware.
        name = request.scope.get("state", {}).get("request_id")
        return response_of(as_api_error(error), {"X-Request-Id": name} if name else None)

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(PlamoRefError, on_ours)
    app.add_exception_handler(Exception, on_ours)
