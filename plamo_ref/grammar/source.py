"""A grammar as the user wrote it: its kind and its text, and the error that names both.

Invariant: a source is bounded before anybody reads it, and two equal sources are one grammar.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from plamo_ref.errors import PlamoRefError

Kind = Literal["json", "json_object", "regex", "choice", "grammar"]
MAX_CHARACTERS = 1 << 19  # of a grammar's text


class GuidedError(PlamoRefError, ValueError):
    """A grammar that is wrong, that cannot be enforced or completed; the message says where."""


class GrammarSource(NamedTuple):
    """What is compiled."""

    kind: Kind
    text: str  # of a choice: a JSON list; of any JSON object: ""

    @classmethod
    def of(cls, kind: Kind, value: Any) -> "GrammarSource":
        """From the value of the field `kind` of `GuidedParams`.

        Raises:
            GuidedError: it is too long, nested too deep, or no JSON.
        """
        if kind == "json_object":
            return cls(kind, "")
        if kind == "choice":
            _check_length(kind, sum(map(len, value)))  # before it is put together
        try:
            text = value if isinstance(value, str) else _as_json(value)
        except RecursionError:
            raise GuidedError(f"guided.{kind}: nested too deep") from None
        except (TypeError, ValueError) as error:
            raise GuidedError(f"guided.{kind}: no JSON: {error}") from None
        _check_length(kind, len(text))
        return cls(kind, text)


def _check_length(kind: Kind, length: int) -> None:
    if length > MAX_CHARACTERS:
        raise GuidedError(
            f"guided.{kind}: {length:,} characters, at most {MAX_CHARACTERS:,} may be"
        )


def _as_json(value: Any) -> str:
    """In the order of its keys as given, which is the order of an object's properties."""
    plain = dict(value) if isinstance(value, Mapping) else value
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
