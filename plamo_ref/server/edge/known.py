"""Which fields of a request are taken: those that are known, and what others ask for in vain.

Invariant: a field that belongs elsewhere is refused by name, with what to do instead, unless its
value asks for what is done anyway; null always does. A name that nobody knows is refused, as OpenAI
does it.
"""

import difflib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticCustomError

LONGEST_NAME = 64  # characters of a name that are repeated to who sent it


@dataclass(frozen=True)
class Elsewhere:
    """What to do instead, and the values that need nothing done."""

    advice: str
    neutral: tuple[Any, ...] = ()
    whatever: bool = False  # every value is neutral: it does not change the answer

    def takes(self, value: Any) -> bool:
        """Whether the value asks for nothing. To JSON, 1 and true are not equal."""
        same = [v for v in self.neutral if v == value and isinstance(v, bool) == _is_bool(value)]
        return value is None or self.whatever or bool(same)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the values that are taken."""
        return {} if self.whatever else {"enum": [None, *self.neutral]}


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


Table = Mapping[str, Elsewhere]


def checked(data: Mapping[str, Any], known: Set[str], table: Table) -> dict[str, Any]:
    """The known fields of a part of a request.

    Raises:
        PydanticCustomError: one is not known, or is in the table and asks for what is not done.
    """
    known = known - table.keys()
    for name in data:  # the first that is wrong is enough
        if name in known:
            continue
        if name not in table:
            raise _unknown(name, known)
        if not table[name].takes(data[name]):
            raise _unsupported(name, table[name])
    return {name: value for name, value in data.items() if name in known}


def _unsupported(name: str, entry: Elsewhere) -> PydanticCustomError:
    taken = " or ".join(_json(value) for value in entry.neutral)
    unless = f", unless it is {taken}" if taken else ""
    said = f"not supported by this server{unless}: {entry.advice}"
    return PydanticCustomError("unsupported_parameter", "{said}", {"said": said, "field": name})


def _unknown(name: str, known: Set[str]) -> PydanticCustomError:
    field = name[:LONGEST_NAME]
    near = difflib.get_close_matches(field, known, 1)
    said = "there is no such field" + (f"; did you mean {near[0]}?" if near else "")
    return PydanticCustomError("unknown_parameter", "{said}", {"said": said, "field": field})


def _json(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')
