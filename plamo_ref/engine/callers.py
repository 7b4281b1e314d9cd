"""Who waits for what: the calls of an `LLM` that are under way, and the text that they get.

The core knows nobody; here its tokens become text. Who stops waiting, or aborts, only notes it;
what he asked for ends between two steps. So that may happen at any moment, even when the garbage
collector drops a stream in the middle of a step, or on another thread.

Invariant: of a completion its `pieces` are what durably is, one for each token, and the state of
its text follows from them. `_torn` is set while they are made, as in core.py: who finds it set
makes the texts anew and takes what was missed. So an error in one call changes no other's text.
"""

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock
from typing import TypeVar

from plamo_ref.engine.blame import is_nobodys
from plamo_ref.engine.completion import Completion
from plamo_ref.engine.core import EngineCore
from plamo_ref.errors import PlamoRefError

T = TypeVar("T")


@dataclass(eq=False)
class Caller:
    """One `generate` or `stream`."""

    streams: bool = False  # it reads pieces
    names: list[str] = field(default_factory=list)  # of all requests that it may have in the core
    groups: list[list[Completion]] = field(default_factory=list)  # its completions, by prompt
    error: Exception | None = None  # what one of its requests ended with

    @property
    def completions(self) -> list[Completion]:
        return [completion for group in self.groups for completion in group]


class Callers:
    """All of them, and the core that works for them."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.completions: dict[str, Completion] = {}  # by request id
        self._callers: dict[str, Caller] = {}  # likewise
        # Wishes. Who appends has wished; a `finally` of one append cannot be interrupted before.
        self.leaving: deque[Caller] = deque()
        self.aborted: deque[str] = deque()
        self._lock = RLock()
        self._program_ends = sys.is_finalizing  # here, as the module's own names are gone by then
        self._busy = False  # somebody is between the two ends of `alone`
        self._torn = False

    # --- turns ---------------------------------------------------------------------------------

    def alone(self, work: Callable[[], T]) -> T:
        """Do something during which no other thread works."""
        try:
            return self._turn(work)
        finally:
            self.grant()

    def grant(self) -> None:
        """Grant what was wished; if somebody is at work, he will, between two steps."""
        if self._program_ends():  # nobody waits any more, and half of the modules are empty
            return
        try:
            self._grant_if_idle()
        except BaseException:
            self._grant_if_idle()  # an interrupt: nobody may come after us who would do it
            raise

    def _grant_if_idle(self) -> None:
        while (self.leaving or self.aborted) and not self._busy:
            self._turn(self._grant)

    def _turn(self, work: Callable[[], T]) -> T:
        with self._lock:
            outer, self._busy = self._busy, True
            try:
                return work()
            finally:
                self._busy = outer

    def _grant(self) -> None:
        """A wish is forgotten only after it was granted, so it may be granted twice."""
        if self._torn:
            self._mend()
        while self.aborted:
            completion = self.completions.get(self.aborted[0])
            if completion is not None and not completion.finished:
                self.core.finish(self.aborted[0], "abort")
                completion.end()
            self.aborted.popleft()
        while self.leaving:
            for name in self.leaving[0].names:
                self.core.finish(name, "abort")
                self.completions.pop(name, None)
                self._callers.pop(name, None)
            self.leaving.popleft()

    def end_all(self) -> None:
        """Nobody shall wait any more, and nothing shall run."""
        self.leaving.extend({id(c): c for c in self._callers.values()}.values())
        self.grant()

    # --- work ----------------------------------------------------------------------------------

    def add(self, caller: Caller, completion: Completion) -> None:
        """From now on the completion gets its text."""
        name = completion.request.request_id
        self._callers[name] = caller
        self.completions[name] = completion

    def advance(self, caller: Caller) -> bool:
        """Make a step if the caller has read everything. False: nothing will come any more."""
        self._grant()
        completions = caller.completions
        if any(c.num_read < len(c.pieces) for c in completions):
            return True
        if caller.error is not None or all(c.finished for c in completions):
            return False
        self.step()
        return True

    def step(self) -> None:
        """One engine step; its tokens become text."""
        self._grant()
        self._torn = True
        try:
            moved = self.core.step()
            self._torn = True  # an observer may have made steps of its own
            for request in moved:
                completion = self.completions.get(request.request_id)
                if completion is None:
                    continue  # its caller was interrupted a moment ago
                if not completion.is_quiet or request.status == "finished":
                    self._take(completion)
        except BaseException:
            self._mend()
            raise
        self._torn = False

    def _mend(self) -> None:
        """Make whole what an error has left half done: the core, and every text."""
        self.core.recover()
        for completion in list(self.completions.values()):
            self._take(completion, anew=True)
        self._torn = False

    def _take(self, completion: Completion, *, anew: bool = False) -> None:
        """Hand a request's new tokens to its completion, and its error to its caller."""
        name, error = completion.request.request_id, completion.request.error
        try:
            if anew:
                completion.rebuild()
            if completion.take_tokens():
                self.core.finish(name, "stop")
        except Exception as its_error:
            if is_nobodys(its_error):
                raise
            error = its_error
            self.core.finish(name, "error", error)
        # One that is said by name is in the completion's output: the others of the call go on.
        if error is not None and not isinstance(error, PlamoRefError):
            self._callers[name].error = error
