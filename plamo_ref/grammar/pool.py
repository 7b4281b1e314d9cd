"""Guides whose grammars live in processes of their own: one process for each grammar in use.

Invariant: nothing here waits, except `pump` and a guide's `wait` for as long as they are told to.
A process that crashes costs the text that it was working on; the other texts of the same grammar
are followed again, from their tokens, in another process, and nobody else notices.

A grammar is compiled once for all who ask for it, and its first mask comes with the verdict. Who
has not begun needs no process: those without open texts are kept while there are few of them.
"""

import itertools
import json
import selectors
import signal
import time
import weakref
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from plamo_ref.grammar.frames import Frame, Op, pack_source, pack_tokens, unpack_state
from plamo_ref.grammar.matcher import State
from plamo_ref.grammar.processes import FORK_SERVER, GrammarProcesses
from plamo_ref.grammar.remote import RemoteGrammar, WorkerGuide
from plamo_ref.grammar.source import GrammarSource
from plamo_ref.grammar.worker import WorkerLimits, why

if TYPE_CHECKING:
    from plamo_ref.grammar.guided import GuidedParams

DEFAULT_LIMITS = WorkerLimits()
COMPILING = 4  # grammars at a time; the others wait
IDLE = 4  # processes without an open text that are kept
MAX_DEATHS = 3  # of one grammar's processes; then all its texts are given up
ANSWER_SECONDS = 30.0  # by the clock; a worker's own limits are in processor time


class GuidePool:
    """All guides of one engine.

    Args:
        folder: of the tokenizer.
        vocab_size: V, width of the logits, at least the tokenizer's.
        stop_ids: tokens that end a text; the first is what a grammar sees as its end.
        limits: what one grammar may cost.
    """

    def __init__(
        self,
        folder: Path,
        vocab_size: int,
        stop_ids: Sequence[int],
        limits: WorkerLimits = DEFAULT_LIMITS,
    ) -> None:
        self.vocab_size = vocab_size
        self.not_text: Collection[int] = frozenset()  # known when the first process is ready
        self._folder, self._stop_ids, self._limits = folder, stop_ids, limits
        self._selector = selectors.DefaultSelector()
        weakref.finalize(self, self._selector.close)  # the last made is the first called
        self._processes: GrammarProcesses | None = None
        self._ready = False
        self._grammars: dict[GrammarSource, RemoteGrammar] = {}
        self._running: dict[int, RemoteGrammar] = {}  # by their process's key
        self._queue: deque[RemoteGrammar] = deque()  # these need a process
        self._keys = itertools.count(FORK_SERVER + 1)
        self._guides = itertools.count(1)

    def prepare(self) -> None:
        """Start to read the tokenizer, in another process: with 100,000 rows it takes seconds.

        Raises:
            GuidedError: this system has no such processes.
        """
        if self._processes is None:
            self._ready = False
            made = GrammarProcesses(
                self._folder, self.vocab_size, self._stop_ids, self._limits, self._selector
            )
            self._processes = made
            self._close = weakref.finalize(self, made.close)

    def start(self, params: "GuidedParams") -> WorkerGuide:
        """A guide at the beginning of its grammar, which is compiled meanwhile: see its `wait`.

        Raises:
            GuidedError: the grammar is too long to be looked at.
        """
        source = params.source
        self.prepare()
        with self._guarded():
            grammar = self._grammars.setdefault(source, RemoteGrammar(source))
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

    # --- what guides ask -----------------------------------------------------------------------

    def follow(self, guide: WorkerGuide) -> None:
        """Its tokens have changed."""
        with self._guarded():
            grammar = guide.grammar
            if grammar.compiled:
                self._ask(guide)
            elif guide.awaits:
                grammar.unasked.add(guide)
                self._want(grammar)

    def leave(self, guide: WorkerGuide) -> None:
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

    def _ask(self, guide: WorkerGuide) -> None:
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

    def _want(self, grammar: RemoteGrammar) -> None:
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
            status = int(frame.payload)
            # SIGKILL comes from outside, whatever the process was doing: it is tried again.
            killed = status == -signal.SIGKILL
            self._lost(grammar, why(status, self._limits), innocent=killed)
        elif frame.op == Op.STATE:
            guide, version = grammar.asked.popleft()
            grammar.since, state = time.monotonic(), unpack_state(frame.payload)
            if guide is None:
                self._judged(grammar, state)
            elif guide.version == version:
                guide.known = state

    def _judged(self, grammar: RemoteGrammar, first: State) -> None:
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

    def _end(self, grammar: RemoteGrammar) -> None:
        key = grammar.key
        self._detach(grammar)
        if key is not None and self._processes is not None:
            self._processes.end(key)

    def _detach(self, grammar: RemoteGrammar) -> None:
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

    def _lost(self, grammar: RemoteGrammar, reason: str, *, innocent: bool = False) -> None:
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
