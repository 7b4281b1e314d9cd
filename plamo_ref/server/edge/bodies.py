"""From the bytes of a body to a checked request, or to the reason why not.

Invariant: before anything of a body is built, how many values it has and how deep they nest is
known, and within bounds; whatever is not plain JSON is refused, and the first mistake is enough.

A JSON parser makes of 4 MiB a million objects, and a validator a complaint about each: gigabytes,
and minutes in which nothing else runs. Counting needs no parser: outside of its texts, every comma
is one value more and every bracket one level.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, get_type_hints

import numpy as np
from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from plamo_ref.server.errors import ApiError, bad, invalid
from plamo_ref.server.service import Service

M = TypeVar("M", bound=BaseModel)

MAX_DEPTH = 100
MAX_DIGITS = 100  # of an integer; to read one takes time that grows with their square
SMALL_BODY = 16 << 10  # bytes that are read at once; more, in a thread
QUOTE, COMMA = ord('"'), ord(",")
OPEN, CLOSE = b"[{", b"]}"
BLOCK = 64 << 10  # bytes that are looked at together: what is made of them stays in the cache
ONLY_DIGITS = bytes(ord("0") if chr(byte).isdecimal() and byte < 128 else 32 for byte in range(256))
# Half of a pair for a character beyond 65,535, or the other half: the pair is looked at later.
HALF = re.compile(rb"\\u[dD][89a-fA-F]")
JSON_TYPE = re.compile(r"application/([\w.+-]+\+)?json\s*(;|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Shape:
    """What a JSON text will become: how many values, and how deep in each other."""

    values: int
    depth: int


def shape_of(data: bytes) -> Shape:
    """The shape of a JSON text, without making anything of it. Of what is no JSON, the shape of the
    part before the first mistake, or more.

    NumPy's loops run while other threads do.
    """
    plain = data.replace(b"\\\\", b"__").replace(b'\\"', b"__")  # now each quote is a border
    values = level = depth = 0
    in_text = False
    for start in range(0, len(plain), BLOCK):
        letters = np.frombuffer(plain, np.uint8, min(BLOCK, len(plain) - start), start)
        inside = np.logical_xor.accumulate(letters == QUOTE) ^ in_text
        opening = _any_of(letters, OPEN) & ~inside
        closing = _any_of(letters, CLOSE) & ~inside
        levels = level + np.cumsum(np.subtract(opening, closing, dtype=np.int8), dtype=np.int32)
        commas = (letters == COMMA) & ~inside
        values += int(np.count_nonzero(commas) + np.count_nonzero(opening))
        in_text, level, depth = bool(inside[-1]), int(levels[-1]), max(depth, int(levels.max()))
    return Shape(values, depth)


def _any_of(letters: np.ndarray, wanted: bytes) -> np.ndarray:
    first, second = wanted
    return (letters == first) | (letters == second)


def parse(data: bytes, max_values: int) -> Any:
    """The value of a JSON text, strictly: no NaN, no name twice, no half characters.

    Raises:
        ApiError: it is none, or has more than `max_values` values.
    """
    shape = shape_of(data)
    if shape.depth > MAX_DEPTH:
        message = f"the body nests {shape.depth:,} levels deep, at most {MAX_DEPTH} may be"
        raise bad(message, code="body_too_complex")
    if shape.values > max_values:
        message = f"the body has {shape.values:,} values, at most {max_values:,} may be"
        raise bad(message, code="body_too_complex")
    try:
        text = data.decode("utf-8-sig")
        # A hook for each integer costs time: only where there may be a long one, perhaps in a text.
        has_long = b"0" * (MAX_DIGITS + 1) in data.translate(ONLY_DIGITS)
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_short_int if has_long else None,
        )
    except UnicodeDecodeError as error:
        raise _no_json(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _no_json(f"{error.msg} at character {error.pos}") from None
    if HALF.search(data):
        _check_characters(value)
    return value


def _no_json(why: str) -> ApiError:
    return bad(f"the body is no JSON that can be read: {why}", code="invalid_json")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise _no_json(f"the name {twice!r} is there twice in one object")
    return found


def _short_int(digits: str) -> int:
    count = len(digits.removeprefix("-"))
    if count > MAX_DIGITS:
        raise _no_json(f"an integer has {count:,} digits, at most {MAX_DIGITS} may be")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise _no_json(f"{name} is no JSON number")


def _check_characters(value: Any) -> None:
    """Raises ApiError for a text with half a character, which has no UTF-8."""
    waiting = [(None, value)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, str):
            _check_text(value, place)
        elif isinstance(value, list):
            waiting += [(place, item) for item in value if isinstance(item, str | list | dict)]
        elif isinstance(value, dict):
            for name, item in value.items():
                _check_text(name, place)
                waiting.append((name if place is None else place, item))


def _check_text(text: str, place: str | None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        message = f"a text has a lone surrogate, {half!r} at character {error.start}"
        where = "the body" if place is None else place
        raise bad(f"{where}: {message}; it is half of a character", place, "invalid_json") from None


def read(data: bytes, model: type[M], max_values: int) -> M:
    """A request of this model.

    Raises:
        ApiError: the body does not fit; it says the first thing that is wrong.
    """
    value = parse(data, max_values)
    if not isinstance(value, dict):
        raise bad("the body is no JSON object", code="invalid_json")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(error, value) from None


def bounded_route(service: Service) -> type[APIRoute]:
    """The class of routes whose endpoint gets its parameter `body` from `read`.

    FastAPI makes the document from the endpoint's signature as always. It would read a body on the
    event loop, and validate all of it.
    """

    class BoundedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            endpoint: Callable[..., Any] = self.endpoint
            hints = get_type_hints(endpoint)
            if "body" not in hints:
                return super().get_route_handler()

            async def handle(request: Request) -> Response:
                given = {"request": request} if "request" in hints else {}
                body = await _read_off_loop(service, request, hints["body"])
                return await endpoint(body=body, **given)

            return handle

    return BoundedRoute


async def _read_off_loop(service: Service, request: Request, model: type[M]) -> M:
    data = await request.body()
    if not JSON_TYPE.match(request.headers.get("content-type", "")):
        # Browsers may send anything else to everybody, without asking.
        raise bad("the body is not called JSON: its Content-Type is not application/json")
    limit = max(service.config.max_values, service.llm.max_model_len)
    if len(data) <= SMALL_BODY:
        return read(data, model, limit)
    return await service.workers.run(read, data, model, limit)
