"""The engine in a process of its own: messages in, steps, messages out. No text here.

Invariant: it holds no request that its front has not asked for, and it ends with its front: its
standard input is a pipe that the front never writes to again and that closes when the front dies,
however it dies. An error that is no refusal ends the process (crash only): the front sees the exit
and decides; no half-broken engine goes on.

`python -m plamo_ref.remote.process` reads one line of JSON from standard input, an `EngineSpec`.
"""

import os
import signal
import sys
import time
from contextlib import suppress

import msgspec
import zmq

from plamo_ref.engine.build import build_core
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.cache import IntegrityError
from plamo_ref.engine.pauses import set_aside
from plamo_ref.engine.source import ModelSource, open_source
from plamo_ref.errors import PlamoRefError
from plamo_ref.grammar.pool import GuidePool, WorkerGuide
from plamo_ref.remote.heartbeat import Heartbeat
from plamo_ref.remote.messages import (
    Abort,
    Add,
    Audit,
    Audited,
    Codec,
    EngineSpec,
    Failed,
    Ready,
    Refused,
    Reset,
    Shutdown,
    Stats,
    Step,
    ToEngine,
    ToFront,
)
from plamo_ref.remote.stats import stats_of
from plamo_ref.remote.telling import Teller
from plamo_ref.sampling import GuidedError, GuidedParams

STATS_SECONDS = 0.05  # between two reports while the engine is busy
LINGER_MS = 1000  # to get the last words out
IDLE_MS = 20  # without a request, before a step is recorded ahead: a burst is not met by that
COMPILING_MS = 1000  # between two looks at the clock, while grammars are compiled and no step runs


def load_core(spec: EngineSpec) -> tuple[EngineCore, ModelSource]:
    """The core of a spec, and what it was made from.

    Raises:
        PlamoRefError: the model or a setting cannot be used.
    """
    config = EngineConfig(**spec.engine)
    source = open_source(spec.folder, *config.source)
    core, _ = build_core(source.config, config, source.load)
    return core, source


class EngineLoop:
    """Between the channel and the core: reads what has come, then makes one step."""

    def __init__(
        self,
        core: EngineCore,
        source: ModelSource,
        inbox: zmq.Socket,
        outbox: zmq.Socket,
        heart: Heartbeat,
    ) -> None:
        self.core, self._stop_ids, self._heart = core, source.stop_token_ids, heart
        self._guides = GuidePool(source.folder, source.config.vocab_size, source.stop_token_ids)
        self._compiling: dict[str, tuple[Add, WorkerGuide]] = {}  # by request
        self._inbox, self._outbox, self._codec = inbox, outbox, Codec()
        self._poller = zmq.Poller()
        self._poller.register(inbox, zmq.POLLIN)
        self._poller.register(sys.stdin.fileno(), zmq.POLLIN)
        self._poller.register(self._guides.fileno(), zmq.POLLIN)
        self._open = True
        self._warm_up = core.warm_up
        self._teller = Teller(several=core.queues.drafter is not None)
        self._preemptions_ended = 0  # of requests that are gone
        self._reported = 0.0

    def warm_up(self, seconds: float) -> None:
        """Record so long the steps that requests will need; what is left, in idle moments."""
        if self._warm_up is not None and not self._warm_up.record_for(seconds):
            self._warm_up = None

    def prepare_guides(self) -> None:
        """Have the tokenizer read now: with 100,000 rows it takes seconds."""
        with suppress(GuidedError):  # who asks for a grammar is told
            self._guides.prepare()

    def run(self) -> None:
        """Serve until told to stop, or until the front is gone."""
        while self._open:
            self._receive()
            self._take_compiled()
            if self._open and self.core.has_work:
                self._heart.now("step", self._next_tokens())
                self._step()
            elif self._open and self._warm_up is not None and not self._warm_up.record_one():
                self._warm_up = None

    # --- in ------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take everything that has come; without work, wait for something."""
        self._heart.now("idle")
        ready = dict(self._poller.poll(self._patience))
        self._heart.now("working")
        if sys.stdin.fileno() in ready:
            self._open = False  # the front is gone: nobody else holds the other end
            return
        if self._compiling or self._guides.fileno() in ready:
            self._guides.pump()
        while self._open:
            try:
                data = self._inbox.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = self._codec.for_engine(data)
            except msgspec.ValidationError as error:  # a value of another type
                self._send(Refused(self._codec.id_of_add(data), f"the request's {error}"))
            else:
                self._handle(message)

    @property
    def _patience(self) -> int | None:
        """Milliseconds to wait for a message; None: until one comes."""
        if self.core.has_work:
            return 0
        if self._warm_up is not None:
            return IDLE_MS
        return COMPILING_MS if self._compiling else None

    def _handle(self, message: ToEngine) -> None:
        match message:
            case Add(request_id, _, params):
                if params.guided is None:
                    self._add(message)
                else:
                    self._compile(message, params.guided)
            case Abort(request_ids):
                for request_id in request_ids:
                    if request_id in self._compiling:
                        self._compiling.pop(request_id)[1].close()
                    request = self.core.requests.get(request_id)
                    if request is not None:
                        self._preemptions_ended += request.num_preemptions
                        self.core.finish(request_id, "abort")
                if not self.core.has_work:
                    self._send(Step([], self.stats()))
            case Audit(number):
                count = len(self.core.requests) + len(self._compiling)
                self._send(Audited(number, count, self.stats(), self._problem()))
            case Reset():
                self.core.reset_prefix_cache()
                self._send(Step([], self.stats()))
            case Shutdown():
                self._open = False

    def _add(self, message: Add, guide: WorkerGuide | None = None) -> None:
        request_id, prompt_ids, params = message.request_id, message.prompt_ids, message.params
        borders = message.borders
        try:
            self.core.add(prompt_ids, params, self._stop_ids, request_id, guide, borders)
        except PlamoRefError as error:
            if guide is not None:
                guide.close()
            self._send(Refused(request_id, str(error)))

    def _compile(self, message: Add, guided: GuidedParams) -> None:
        """Have its grammar compiled, elsewhere; then it is added."""
        try:
            self._compiling[message.request_id] = message, self._guides.start(guided)
        except GuidedError as error:
            self._send(Refused(message.request_id, str(error), grammar=True))

    def _take_compiled(self) -> None:
        """Add, or refuse, those whose grammars have been compiled."""
        for request_id, (message, guide) in list(self._compiling.items()):
            if not guide.is_settled:
                continue
            del self._compiling[request_id]
            if guide.error is None:
                self._add(message, guide)
            else:
                guide.close()
                self._send(Refused(request_id, guide.error, grammar=True))

    def _problem(self) -> str | None:
        try:
            self.core.cache.check_integrity()
        except IntegrityError as error:
            return str(error)
        return None

    # --- out -----------------------------------------------------------------------------------

    def _step(self) -> None:
        moved = self.core.step()
        told = [self._teller.tokens(request) for request in moved if request.error is None]
        tokens = [token for each in told for token in each]
        for request in moved:
            if request.status == "finished":
                self._preemptions_ended += request.num_preemptions
            if (error := request.error) is not None:  # its own: the others go on
                self._send(Refused(request.request_id, str(error), isinstance(error, GuidedError)))
        now = time.monotonic()
        due = now - self._reported >= STATS_SECONDS or not self.core.has_work
        if due:
            self._reported = now
        if tokens or due:
            self._send(Step(tokens, self.stats() if due else None))

    def _next_tokens(self) -> int:
        """How many the next step computes at most."""
        queues, most = self.core.queues, self.core.config.step_tokens
        if queues.waiting:
            return most
        others = [r.num_uncomputed_tokens for r in queues.running if r.settled is None]
        return min(most, len(queues.running) - len(others) + sum(others))

    def stats(self) -> Stats:
        return stats_of(self.core, len(self._compiling), self._preemptions_ended)

    def _send(self, message: ToFront) -> None:
        self._outbox.send(self._codec.encode(message))


def serve(spec: EngineSpec) -> int:
    """Load, say so, run. Returns the exit code: 0, or 1 after a `Failed`."""
    context = zmq.Context()
    inbox, outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    for box, address in ((inbox, spec.inbox), (outbox, spec.outbox)):
        box.set_hwm(0)  # the front bounds what is under way; a dropped or stuck message would not
        box.linger = LINGER_MS
        box.connect(address)
    try:
        with Heartbeat(context, spec.outbox, spec.heartbeat_seconds) as heart:
            return _live(spec, inbox, outbox, heart)
    finally:
        context.destroy()


def _live(spec: EngineSpec, inbox: zmq.Socket, outbox: zmq.Socket, heart: Heartbeat) -> int:
    try:
        core, source = load_core(spec)
    except (PlamoRefError, OSError) as error:
        outbox.send(Codec().encode(Failed(str(error))))
        return 1
    vocabulary = source.config.vocab_size
    ready = Ready(core.max_model_len, core.queues.max_num_seqs, vocabulary, os.getpid())
    heart.expect(source.config.num_parameters)
    loop = EngineLoop(core, source, inbox, outbox, heart)
    loop.prepare_guides()
    loop.warm_up(core.config.warm_up_seconds)
    set_aside()
    outbox.send(Codec().encode(ready))
    loop.run()
    return 0


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the front, which tells us
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineSpec)
    return serve(spec)


if __name__ == "__main__":
    sys.exit(main())
