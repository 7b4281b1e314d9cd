"""What is said of a request that does not have its shape.

Invariant: the place is the one in what the client sent, and where a field may be one of several
types, the complaint is about the type that the client used.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Place = tuple[str | int, ...]
VALID = "Input should be a valid "
LONGEST_NAME = 64  # characters of a name that are repeated to who sent it


def complaint(errors: Sequence[Mapping[str, Any]], body: Any) -> tuple[str, str | None, str | None]:
    """The message that a client should read, the field, and the code if there is one.

    Args:
        errors: pydantic's, of `body`; at least one.
    """
    placed = [(_place(error, body), error) for error in errors]
    first = placed[0][0]
    # One for each alternative of a field: the client meant the one that fits farthest.
    same = [(place, error) for place, error in placed if place[:1] == first[:1]]
    deepest = max(len(place) for place, _ in same)
    same = [(place, error) for place, error in same if len(place) == deepest]
    fitting = [(place, error) for place, error in same if not error["type"].endswith("_type")]
    place, error = (fitting or same)[0]
    kinds = [other["msg"] for other_place, other in same if other_place == place]
    said = _said(error) if fitting else _one_of(list(dict.fromkeys(kinds)))
    code = error["type"] if error["type"].endswith("_parameter") else None
    return f"{written(place)}: {said}", str(place[0])[:LONGEST_NAME] if place else None, code


def _said(error: Mapping[str, Any]) -> str:
    return str(error["msg"]).removeprefix("Value error, ")


def _one_of(messages: Sequence[str]) -> str:
    """ "… a valid string", "… a valid list" → "… a valid string or list"."""
    if all(message.startswith(VALID) for message in messages):
        return VALID + " or ".join(message.removeprefix(VALID) for message in messages)
    return messages[0]


def _place(error: Mapping[str, Any], body: Any) -> Place:
    """Where in `body`: pydantic also names the alternatives that it tried."""
    place: list[str | int] = []
    here = body
    parts = error["loc"]
    for part in parts:
        inside = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if inside or (isinstance(here, dict) and part in here):
            place.append(part)
            here = here[part]
    last = parts[-1:] if error["type"] == "missing" else []
    field = error.get("ctx", {}).get("field")  # of a part that has one too many
    return (*place, *last, *([] if field is None else [field]))


def written(place: Place) -> str:
    """As one writes it: messages[0].content"""
    parts = (f"[{p}]" if isinstance(p, int) else f".{p[:LONGEST_NAME]}" for p in place)
    return "".join(parts).removeprefix(".")
