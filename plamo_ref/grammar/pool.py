"""Guides whose grammars live in processes of their own: one process for each grammar in use.

Invariant: nothing here waits, except `pump` and a guide's `wait` for as long as they are told to.
A process that is lost costs the text that it was working on; the other texts of the same grammar
are followed again, from their tokens, in another process, and nobody else notices.

A grammar is compiled once for all who ask for it, and its first mask comes with the verdict. Who
has not begun needs no process: those without open texts are kept while there are few of them.
"""

import itertools
import json
import selectors
import time
import weakref
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from plamo_ref.grammar.frames import Frame, Op, pack_source, pack_tokens, unpack_state
from plamo_ref.grammar.guide import FollowingGuide
from plamo_ref.grammar.matcher import State
from plamo_ref.grammar.processes import FORK_SERVER, GrammarProcesses
from plamo_ref.grammar.source import GrammarSource
from plamo_ref.grammar.worker import why

COMPILING = 4  # grammars at a time; the others wait
IDLE = 4  # processes without an open text that are kept
MAX_DEATHS = 3  # of one grammar's processes; then all its texts are given up
ANSWER_SECONDS = 30.0  # by the clock; a worker's own limits are in processor time
WAIT_SECONDS = 1.0  # between two looks at the clock, for who waits without end


class HasSource(Protocol):
    """`GuidedParams`."""

    @property
    def source(self) -> GrammarSource: ...


@dataclass(eq=False)
class _Grammar:
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


class GuidePool:
    """All guides of one engine.

    Args:
        folder: of the tokenizer.
        vocab_size: V, width of the logits, at least the tokenizer's.
        stop_ids: tokens that end a text; the first is what a grammar sees as its end.
    """

    def __init__(self, folder: Path, vocab_size: int, stop_ids: Sequence[int]) -> None:
        self.vocab_size = vocab_size
        self.not_text: Collection[int] = frozenset()  # known when the first process is ready
        self._folder, self._stop_ids = folder, stop_ids
        self._selector = selectors.DefaultSelector()
        weakref.finalize(self, self._selector.close)  # the last made is the first called
        self._processes: GrammarProcesses | None = None
        self._ready = False
        self._grammars: dict[GrammarSource, _Grammar] = {}
        self._running: dict[int, _Grammar] = {}  # by their process's key
        self._queue: deque[_Grammar] = deque()  # these need a process
        self._keys = itertools.count(FORK_SERVER + 1)
        self._guides = itertools.count(1)

    def prepare(self) -> None:
        """Start to read the tokenizer, in another process: with 100,000 rows it takes seconds.

        Raises:
            GuidedError: this system has no such processes.
        """
        if self._processes is None:
            self._ready = False
            made = GrammarProcesses(self._folder, self.vocab_size, self._stop_ids, self._selector)
            self._processes = made
            self._close = weakref.finalize(self, made.close)

    def start(self, params: HasSource) -> "WorkerGuide":
        """A guide at the beginning of its grammar, which is compiled meanwhile: see its `wait`.

        Raises:
            GuidedError: the grammar is too long to be looked at.
        """
        source = params.source
        self.prepare()
        with self._guarded():
            grammar = self._grammars.setdefault(source, _Grammar(source))
            guide = WorkerGuide(self, grammar, next(self._guides))
            grammar.users.add(guide)
            self._want(grammar)
        return guide

    def fileno(self) -> int:
        """Readable when `pump` has something to do."""
        return self._selector.fileno()

    def pump(self, seconds: float = 0.0) -> None:
        """Take what the processes say, after waiting at most so long for anything."""
        with self._guarded():
            if self._processes is not None:
                for key, frame in self._processes.poll(seconds):
                    self._hear(key, frame)
            self._look_at_the_clock()
            self._launch()

    def close(self) -> None:
        """End all processes; guides that are not closed start others when they need them."""
        self._reset()

    # --- what guides ask -----------------------------------------------------------------------

    def follow(self, guide: "WorkerGuide") -> None:
        """Its tokens have changed."""
        with self._guarded():
            grammar = guide.grammar
            if grammar.compiled:
                self._ask(guide)
            elif guide.awaits:
                grammar.unasked.add(guide)
                self._want(grammar)

    def leave(self, guide: "WorkerGuide") -> None:
        """Nobody asks for it any more. A grammar that nobody asks for is not worked on."""
        with self._guarded():
            grammar = guide.grammar
            grammar.users.discard(guide)
            grammar.unasked.discard(guide)
            if guide in grammar.open and grammar.key is not None and self._processes is not None:
                self._processes.send(grammar.key, Frame(Op.CLOSE, guide.number, b""))
            grammar.open.discard(guide)
            if not grammar.users and (grammar.asked or not grammar.compiled):
                self._end(grammar)
            self._trim()
            self._launch()

    def _ask(self, guide: "WorkerGuide") -> None:
        grammar = guide.grammar
        assert self._processes is not None
        assert grammar.key is not None
        follows = guide in grammar.open
        tokens = guide.tokens[-1:] if follows else guide.tokens
        op = Op.ACCEPT if follows else Op.OPEN
        grammar.open.add(guide)
        if not grammar.asked:
            grammar.since = time.monotonic()
        grammar.asked.append((guide, guide.version))
        self._processes.send(grammar.key, Frame(op, guide.number, pack_tokens(tokens)))

    # --- processes come and go -----------------------------------------------------------------

    def _want(self, grammar: _Grammar) -> None:
        if grammar.needs_process and grammar not in self._queue:
            self._queue.append(grammar)
            self._launch()

    def _launch(self) -> None:
        """Give processes to those who wait for one."""
        if not self._queue:
            return
        self.prepare()
        compiling = sum(not grammar.compiled for grammar in self._running.values())
        while self._ready and self._queue and compiling < COMPILING:
            grammar = self._queue.popleft()
            if not grammar.needs_process:
                continue
            assert self._processes is not None
            grammar.key = key = next(self._keys)
            self._running[key] = grammar
            grammar.asked.append((None, 0))
            grammar.since = time.monotonic()
            try:
                self._processes.start(key)
            except OSError as error:  # no sockets left
                self._lost(grammar, f"no process: {error}")
                continue
            self._processes.send(key, Frame(Op.SOURCE, 0, pack_source(grammar.source)))
            compiling += 1

    def _hear(self, key: int, frame: Frame) -> None:
        if frame.op == Op.READY:
            self._ready, self.not_text = True, frozenset(json.loads(frame.payload))
            return
        if frame.op == Op.FAILED:
            self._server_lost(frame.payload.decode())
            return
        grammar = self._running.get(key)
        if grammar is None:
            return  # ended a moment ago
        if frame.op == Op.EXIT:
            self._lost(grammar, why(int(frame.payload)))
        elif frame.op == Op.STATE:
            guide, version = grammar.asked.popleft()
            grammar.since, state = time.monotonic(), unpack_state(frame.payload)
            if guide is None:
                self._judged(grammar, state)
            elif guide.version == version:
                guide.known = state

    def _judged(self, grammar: _Grammar, first: State) -> None:
        """The grammar is compiled, or refused."""
        if first.error is not None:
            grammar.error = first.error
            self._end(grammar)
            return
        grammar.first, grammar.compiled = first, True
        for guide in grammar.unasked:
            self._ask(guide)
        grammar.unasked.clear()
        self._trim()

    def _trim(self) -> None:
        """Keep few of the processes that follow nothing: they remember a compiled grammar."""
        idle = [grammar for grammar in self._running.values() if grammar.is_idle]
        for grammar in idle[: max(0, len(idle) - IDLE)]:
            self._end(grammar)

    def _end(self, grammar: _Grammar) -> None:
        key = grammar.key
        self._detach(grammar)
        if key is not None and self._processes is not None:
            self._processes.end(key)

    def _detach(self, grammar: _Grammar) -> None:
        """The grammar has no process any more."""
        if grammar.key is not None:
            self._running.pop(grammar.key, None)
        grammar.key, grammar.compiled = None, False
        for guide, version in grammar.asked:
            if guide in grammar.users and guide.version == version:
                grammar.unasked.add(guide)
        grammar.asked.clear()
        grammar.open.clear()
        if not grammar.users:
            self._grammars.pop(grammar.source, None)

    def _lost(self, grammar: _Grammar, reason: str, *, innocent: bool = False) -> None:
        """Its process is gone, and with it what it was working on; the rest begins again."""
        culprit, version = (None, 0) if innocent or not grammar.asked else grammar.asked[0]
        compiling = bool(grammar.asked) and not grammar.compiled and not innocent
        self._detach(grammar)
        grammar.deaths += 1
        reason = f"guided.{grammar.source.kind}: {reason}"
        if culprit is not None and culprit.version == version:
            grammar.unasked.discard(culprit)
            culprit.failure = reason
        if compiling or grammar.deaths > MAX_DEATHS:
            grammar.error = reason
        self._want(grammar)

    def _server_lost(self, reason: str) -> None:
        """The fork server could not start (it says why), or has died."""
        started = self._ready
        self._close()
        self._processes, self._ready = None, False
        for grammar in list(self._running.values()):
            self._lost(grammar, "the grammar processes have ended", innocent=True)
        if not started:
            for grammar in self._queue:
                grammar.error = f"guided.{grammar.source.kind}: " + (
                    reason or "no grammar process can be started"
                )
            self._queue.clear()

    def _look_at_the_clock(self) -> None:
        now = time.monotonic()
        for grammar in list(self._running.values()):
            if grammar.asked and now - grammar.since > ANSWER_SECONDS:
                key = grammar.key
                self._lost(grammar, f"no answer in {ANSWER_SECONDS:g} s")
                if key is not None and self._processes is not None:
                    self._processes.end(key)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """An interrupt may come between any two steps in here: then everything begins again."""
        try:
            yield
        except BaseException:
            self._reset()
            raise

    def _reset(self) -> None:
        if self._processes is not None:
            self._close()
        self._processes, self._ready = None, False
        self._queue.clear()
        self._running.clear()
        for grammar in list(self._grammars.values()):
            self._detach(grammar)
            grammar.unasked |= {guide for guide in grammar.users if guide.awaits}
            if grammar.needs_process:
                self._queue.append(grammar)


class WorkerGuide(FollowingGuide):
    """A guide whose masks are made elsewhere. After `accept` the next one is on its way."""

    def __init__(self, pool: GuidePool, grammar: _Grammar, number: int) -> None:
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
