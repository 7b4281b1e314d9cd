"""A text whose grammar lives in another process, and what is known here of that grammar.

Invariant: a guide is settled when its mask, or the reason why there will be none, is known; until
then it has been asked about, or waits for a process that can be asked.
"""

import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from plamo_ref.grammar.guide import FollowingGuide
from plamo_ref.grammar.matcher import State
from plamo_ref.grammar.source import GrammarSource

WAIT_SECONDS = 1.0  # between two looks at the clock, for who waits without end


class Pool(Protocol):
    """What a guide asks of `plamo_ref.grammar.pool.GuidePool`."""

    vocab_size: int
    not_text: Collection[int]

    def pump(self, seconds: float = 0.0) -> None: ...

    def follow(self, guide: "WorkerGuide") -> None: ...

    def leave(self, guide: "WorkerGuide") -> None: ...


@dataclass(eq=False)
class RemoteGrammar:
    """One grammar, its process, and the texts that follow it."""

    source: GrammarSource
    key: int | None = None  # of its process
    compiled: bool = False  # by this process
    first: State | None = None  # where every text begins
    error: str | None = None
    users: "set[WorkerGuide]" = field(default_factory=set)
    open: "set[WorkerGuide]" = field(default_factory=set)  # whom the process follows
    unasked: "set[WorkerGuide]" = field(default_factory=set)  # who waits for a process
    # What was asked of the process, and for which version of the guide; None: to compile.
    asked: "deque[tuple[WorkerGuide | None, int]]" = field(default_factory=deque)
    since: float = 0.0  # when its work on the first of these began
    deaths: int = 0

    @property
    def is_idle(self) -> bool:
        return self.compiled and not self.asked and not self.open

    @property
    def needs_process(self) -> bool:
        idle = self.first is not None and not self.unasked
        return bool(self.users) and self.key is None and self.error is None and not idle


class WorkerGuide(FollowingGuide):
    """A guide whose masks are made elsewhere. After `accept` the next one is on its way."""

    def __init__(self, pool: Pool, grammar: RemoteGrammar, number: int) -> None:
        super().__init__(grammar.source.kind, pool.vocab_size)
        self._pool, self.grammar, self.number = pool, grammar, number
        self.version = 0  # counts the changes of `tokens`
        self.known: State | None = None  # after `tokens`, unless there are none
        self.failure: str | None = None

    @property
    def awaits(self) -> bool:
        """Whether an answer about its tokens is wanted."""
        return bool(self.tokens) and self.known is None and self.failure is None

    @property
    def not_text(self) -> Collection[int]:
        return self._pool.not_text

    def wait(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self.is_settled:
            left = end - time.monotonic()
            self._pool.pump(max(0.0, min(left, WAIT_SECONDS)))
            if left <= 0:
                return self.is_settled
        return True

    @property
    def is_settled(self) -> bool:
        """Whether its state is known; asks nobody."""
        if self.failure is not None or self.grammar.error is not None:
            return True
        return self.grammar.first is not None and not self.awaits

    def state(self) -> State:
        while not self.wait(WAIT_SECONDS):
            pass  # it ends: with an answer, or with a reason
        failed = self.failure or self.grammar.error
        if failed is not None:
            return State(b"", False, True, failed)
        state = self.known if self.tokens else self.grammar.first
        assert state is not None
        return state

    @property
    def error(self) -> str | None:
        self.state()
        return self.failure or self.grammar.error or super().error

    def _moved(self) -> None:
        self.version += 1
        self.known = None
        self._pool.follow(self)

    def restart(self, tokens: Sequence[int]) -> None:
        self.tokens, self.failure = list(tokens), None
        self.grammar.open.discard(self)  # from its beginning
        self._moved()

    def close(self) -> None:
        self._pool.leave(self)
