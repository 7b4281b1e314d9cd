"""Values where they enter: of a known type, in their range, and Python's own from there on.

Invariant: what `read` returns is exactly an int, a float, a bool, a str or a tuple of these, never
a NumPy or torch scalar, never a bool that was meant as a number; anything else is an error that
names the field, the value and what is wanted.
"""

import math
import numbers
import operator
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from plamo_ref.errors import PlamoRefError

MOST = 2**63 - 1  # a larger count does not fit into a message, and means no more
SHOWN = 80  # characters of a wrong value in a message


class OutOfRangeError(ValueError):
    """A value of the right type; the message is what is wanted."""


class Kind(Protocol):
    """What a field may be."""

    @property
    def wanted(self) -> str:
        """Goes on where "FIELD must be" ends."""
        ...

    def read(self, value: Any) -> Any:
        """The value as Python's own.

        Raises:
            TypeError, ValueError, OverflowError: it is not of this kind.
        """
        ...


def read(error: type[PlamoRefError], name: str, value: Any, kind: Kind) -> Any:
    """The value of field `name`.

    Raises:
        PlamoRefError: of class `error`; says the field, the value and what is wanted.
    """
    try:
        return kind.read(value)
    except OutOfRangeError as out:
        raise error(f"{name} must be {out}, not {shown(value)}") from None
    except (TypeError, ValueError, OverflowError):
        cure = ": leave it out for the default" if value is None else ""
        raise error(f"{name} must be {kind.wanted}, not {shown(value)}{cure}") from None


def read_fields(owner: object, kinds: Mapping[str, Kind], error: type[PlamoRefError]) -> None:
    """Put the values of a frozen dataclass right, field by field."""
    for name, kind in kinds.items():
        object.__setattr__(owner, name, read(error, name, getattr(owner, name), kind))


def shown(value: object) -> str:
    """A value in a message: one line, not a long one, and never an error of its own."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an integer of 5,000 digits, a list 2,000 deep
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def plain(value: Any) -> Any:
    """A scalar or 0-d array of NumPy or torch as Python's own; anything else as it is."""
    if isinstance(value, (int, float, str)) and type(value).__module__ == "builtins":
        return value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        try:
            return value.item()
        except RuntimeError as error:  # a tensor that has a shape and no data
            raise TypeError(str(error)) from None
    return value


def whole(value: Any) -> int:
    """An integer, whoever made it. True is none, and neither is 4.0."""
    value = plain(value)
    if isinstance(value, bool) or getattr(value, "shape", ()) != ():
        raise TypeError("a truth value, or a whole array")
    return int(operator.index(value))


def listed(value: Any) -> list[Any]:
    """What an iterable gives, in its order. A text and a mapping are no lists."""
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)):
        raise TypeError("no list")
    return list(value)


# --- kinds ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """An integer. One above `most` is refused, or counts as `most`."""

    range: str
    least: int = 0
    most: int = MOST
    clipped: bool = False

    @property
    def wanted(self) -> str:
        return f"an integer, {self.range}"

    def read(self, value: Any) -> int:
        number = whole(value)
        if number < self.least or (number > self.most and not self.clipped):
            raise OutOfRangeError(self.range)
        return min(number, self.most)


@dataclass(frozen=True)
class Seed:
    """Any integer; of a long one the last 64 bits, which are all that random numbers use."""

    wanted: str = "an integer"

    def read(self, value: Any) -> int:
        number = whole(value)
        return number if -(2**63) <= number <= MOST else number % 2**64


@dataclass(frozen=True)
class Number:
    """A real number that `fits`."""

    range: str
    fits: Callable[[float], bool]

    @property
    def wanted(self) -> str:
        return f"a number, {self.range}"

    def read(self, value: Any) -> float:
        value = plain(value)
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError("no number")
        number = float(value)
        if math.isnan(number) or not self.fits(number):
            raise OutOfRangeError(self.range)
        return number


@dataclass(frozen=True)
class Flag:
    """True or False; 1 and "no" are neither. `or_file`: or the name of a file."""

    wanted: str = "True or False"
    or_file: bool = False

    def read(self, value: Any) -> bool | str:
        if isinstance(value := plain(value), bool):
            return value
        if not self.or_file or value == "":
            raise TypeError("no truth value")
        return str(os.fspath(value))


@dataclass(frozen=True)
class Text:
    """A text that is not empty, and can be written as UTF-8."""

    wanted: str = "a text"

    def read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise TypeError("no text")
        value.encode()  # half a character is a ValueError
        if not value:
            raise ValueError("empty")
        return str(value)


@dataclass(frozen=True)
class OneOf:
    """One of some texts, or one of the other names that they have."""

    texts: Collection[str]
    hint: str = ""
    other_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def wanted(self) -> str:
        *most, last = [f'"{text}"' for text in self.texts]
        return f"{', '.join(most)} or {last}{self.hint}"

    def read(self, value: Any) -> str:
        text = self.other_names.get(value, value) if isinstance(value, str) else value
        if not isinstance(text, str) or text not in self.texts:
            raise ValueError("none of them")
        return str(text)


@dataclass(frozen=True)
class Listed:
    """Any number of values of a kind, in any iterable; if `alone`, a text is a list of one."""

    wanted: str
    kind: Kind
    alone: bool = False

    def read(self, value: Any) -> tuple[Any, ...]:
        items = [value] if self.alone and isinstance(value, str) else listed(value)
        try:
            return tuple(self.kind.read(item) for item in items)
        except OutOfRangeError:
            raise OutOfRangeError(self.wanted) from None


@dataclass(frozen=True)
class Mapped:
    """A mapping from values of one kind to values of another."""

    wanted: str
    key: Kind
    value: Kind

    def read(self, value: Any) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise TypeError("no mapping")
        try:
            return {self.key.read(k): self.value.read(v) for k, v in value.items()}
        except OutOfRangeError:
            raise OutOfRangeError(self.wanted) from None


@dataclass(frozen=True)
class Made:
    """An object of a class."""

    wanted: str
    of: type

    def read(self, value: Any) -> Any:
        if not isinstance(value, self.of):
            raise TypeError("of another class")
        return value


@dataclass(frozen=True)
class Function:
    """Anything that can be called."""

    wanted: str = "a function"

    def read(self, value: Any) -> Any:
        if not callable(value):
            raise TypeError("cannot be called")
        return value


@dataclass(frozen=True)
class NoneFor:
    """None stands for `meaning`; anything else is of the kind."""

    kind: Kind
    meaning: Any = None

    @property
    def wanted(self) -> str:
        return self._or_none(self.kind.wanted)

    def read(self, value: Any) -> Any:
        try:
            return self.meaning if value is None else self.kind.read(value)
        except OutOfRangeError as out:
            raise OutOfRangeError(self._or_none(str(out))) from None

    def _or_none(self, wanted: str) -> str:
        return wanted if self.meaning is not None else f"{wanted}, or None"


@dataclass(frozen=True)
class Torchs:
    """A name, or torch's own object of that name."""

    kind: Kind

    @property
    def wanted(self) -> str:
        return self.kind.wanted

    def read(self, value: Any) -> Any:
        kind = type(value)
        if kind.__module__ == "torch" and kind.__name__ in ("dtype", "device"):
            value = str(value).removeprefix("torch.")
        return self.kind.read(value)
