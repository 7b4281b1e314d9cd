"""From a model's text, as it grows, to text for the user and calls of tools.

Invariant: what comes out depends on the text alone, not on how it was cut, and comes out as early
as it is certain. Nothing is taken back, and nothing is lost: what looks like a call and is none (of
a function that was not offered, or broken before its arguments) is text.
"""

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from plamo_ref.chat.tool_forms import ToolForm

MAX_HEAD = 1024  # characters of a call before its arguments
BRACKETS = re.compile(r'["{}\[\]]')
IN_STRING = re.compile(r'["\\]')
SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Text:
    """For the user."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """A call, the `index`-th of this text."""

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """More of its arguments."""

    index: int
    text: str


Piece = Text | CallBegins | Arguments


class JsonEnd:
    """Looks for the end of a JSON object, or array, in parts."""

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth  # open brackets
        self._in_string = self._escaped = False

    def find(self, text: str, at_depth: int = 0) -> int | None:
        """Index just after the bracket that leaves only `at_depth` open; None: not in this part."""
        place = 0
        while place < len(text):
            if self._escaped:
                self._escaped, place = False, place + 1
                continue
            found = (IN_STRING if self._in_string else BRACKETS).search(text, place)
            if found is None:
                return None
            place = found.end()
            match found[0]:
                case '"':
                    self._in_string = not self._in_string
                case "\\":
                    self._escaped = True
                case "{" | "[":
                    self.depth += 1
                case _:
                    self.depth -= 1
                    if self.depth <= at_depth:
                        return place
        return None


class ToolReader:
    """Reads one text in a form. `push` its parts, then `finish`."""

    def __init__(self, form: ToolForm, functions: Collection[str]) -> None:
        self._form, self._functions = form, frozenset(functions)
        self._left = ""  # what is not decided yet
        self._step: Callable[[list[Piece]], bool] = self._start if form.starts else self._text
        self._arguments_end = JsonEnd()
        self._object_end: JsonEnd | None = None  # of an object that may be a call
        self._seen = 0  # characters of `_left` that `_object_end` has seen
        self._last = False
        self.num_calls = 0

    def push(self, text: str) -> list[Piece]:
        """What this part makes certain."""
        self._left += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """What is certain now that nothing follows."""
        self._last = True
        pieces = self.push("")
        if self._left:  # white space alone
            pieces.append(Text(self._left))
        self._left = ""
        return pieces

    # --- steps: each returns whether another may follow at once -----------------------------------

    def _start(self, pieces: list[Piece]) -> bool:
        """Nothing but white space has come."""
        first = self._left.lstrip()[:1]
        if not first:
            return False
        self._step = self._calls if first in self._form.starts else self._text
        return True

    def _text(self, pieces: list[Piece]) -> bool:
        """Up to an opener. White space before it is no text."""
        found = [place for o in self._form.openers if (place := self._left.find(o)) >= 0]
        free = min(found) if found else len(self._left) - self._undecided()
        free = len(self._left) if self._last and not found else len(self._left[:free].rstrip())
        if free:
            pieces.append(Text(self._left[:free]))
        self._left = self._left[free:]
        if found:
            self._step = self._calls
        return bool(found)

    def _undecided(self) -> int:
        """Length of the longest end that begins an opener."""
        sizes = range(max(map(len, self._form.openers), default=1) - 1, 0, -1)
        openers = self._form.openers
        return next((n for n in sizes if any(o[:n] == self._left[-n:] for o in openers)), 0)

    def _calls(self, pieces: list[Piece]) -> bool:
        """Where a region may begin: what is skipped is text if no call follows."""
        place = self._skip((*self._form.openers, *self._form.fillers))
        if self._left.startswith(self._form.sign, place):
            return self._call(place, pieces)
        if self._may_become(place, (*self._form.openers, *self._form.fillers, self._form.sign)):
            return False
        return self._no_call(place, pieces)

    def _between(self, pieces: list[Piece]) -> bool:
        """After a call: what closes it is no text."""
        self._left = self._left[self._skip(self._form.fillers) :]
        marks = (*self._form.openers, *self._form.fillers, self._form.sign)
        if self._last and any(mark.startswith(self._left) for mark in marks):
            self._left = ""
        elif self._left.startswith((*self._form.openers, self._form.sign)):
            self._step = self._calls
            return True
        elif not self._may_become(0, marks):
            self._step = self._text
            return True
        return False

    def _may_become(self, place: int, marks: Collection[str]) -> bool:
        """Whether what stands at `place`, perhaps nothing, can still grow into one of them."""
        return not self._last and any(mark.startswith(self._left[place:]) for mark in marks)

    def _skip(self, marks: Collection[str]) -> int:
        """How far white space and marks go."""
        place = 0
        while True:
            found = SPACE.match(self._left, place)
            place = found.end() if found else place
            at = [m for m in marks if self._left.startswith(m, place) and m != self._form.sign]
            if not at:
                return place
            place += max(map(len, at))

    def _call(self, place: int, pieces: list[Piece]) -> bool:
        """A call may begin at `place`."""
        found = self._form.call.match(self._left[place : place + MAX_HEAD])
        if found is not None and found["name"] in self._functions:
            self._begin(found["name"], pieces)
            self._left = self._left[place + found.end() :]
            self._arguments_end, self._step = JsonEnd(), self._in_arguments
            return True
        if self._form.in_object:
            return self._object(place, pieces)
        if found is None and not self._last and len(self._left) - place < MAX_HEAD:
            return False
        return self._no_call(place + len(self._form.sign), pieces)

    def _object(self, place: int, pieces: list[Piece]) -> bool:
        """A call whose members come in another order shows at its end."""
        if self._object_end is None:
            self._object_end, self._seen = JsonEnd(), place
        end = self._object_end.find(self._left[self._seen :])
        if end is None:
            self._seen = len(self._left)
            return self._last and self._no_call(len(self._left), pieces)
        end += self._seen
        call = self._as_call(self._left[place:end])
        if call is None:
            return self._no_call(end, pieces)
        self._begin(call[0], pieces)
        pieces.append(Arguments(self.num_calls - 1, call[1]))
        self._left, self._step = self._left[end:], self._between
        return True

    def _as_call(self, text: str) -> tuple[str, str] | None:
        """Name and arguments."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        arguments = found.get("arguments", found.get("parameters", {}))
        if not isinstance(found.get("name"), str) or found["name"] not in self._functions:
            return None
        if isinstance(arguments, str):  # JSON in JSON
            return found["name"], arguments
        return found["name"], json.dumps(arguments or {}, ensure_ascii=False)

    def _begin(self, name: str, pieces: list[Piece]) -> None:
        pieces.append(CallBegins(self.num_calls, name))
        self.num_calls += 1
        self._object_end = None

    def _no_call(self, end: int, pieces: list[Piece]) -> bool:
        """Up to `end` it is text after all."""
        pieces.append(Text(self._left[:end]))
        self._left, self._object_end = self._left[end:], None
        self._step = self._text
        return True

    def _in_arguments(self, pieces: list[Piece]) -> bool:
        end = self._arguments_end.find(self._left)
        size = len(self._left) if end is None else end
        if size:
            pieces.append(Arguments(self.num_calls - 1, self._left[:size]))
        self._left = self._left[size:]
        if end is not None:
            self._arguments_end = JsonEnd(1)
            self._step = self._after_arguments if self._form.in_object else self._between
        return end is not None

    def _after_arguments(self, pieces: list[Piece]) -> bool:
        """The rest of the object that the arguments are a member of."""
        end = self._arguments_end.find(self._left)
        self._left = "" if end is None else self._left[end:]
        if end is not None:
            self._step = self._between
        return end is not None
