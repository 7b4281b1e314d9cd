"""A thread beside the engine's loop that tells the front, every second, what the loop is doing.

Invariant: as long as the process runs at all, the front hears from it, however long a step takes;
and what it hears says since when, so that the front can tell work from a loop that hangs.

What may last. Waiting for requests and loading the model: for ever. A step: as long as its tokens
have ever taken, which is learned here. Compiling kernels, which happens in the middle of a first
step and takes minutes: it is recognised by the functions that the loop is in.
"""

import gc
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import zmq

from plamo_ref.remote.messages import Alive, Codec, Phase

# Nothing that serves a model computes fewer operations in a second; until a step has been seen.
SLOWEST = 1e9
FORGETTING = 0.99  # of the slowest step, with each step
COMPILERS = ("triton.", "torch._dynamo.", "torch._inductor.", "torch.cuda.graphs")
OURS = "plamo_ref."


class Heartbeat:
    """Use it in `with`; the loop calls `now` at each change of what it does.

    Args:
        context: of ZeroMQ; the thread has a socket of its own.
        address: where the front listens.
        seconds: between two beats.
    """

    def __init__(self, context: zmq.Context, address: str, seconds: float) -> None:
        self._context, self._address, self._seconds = context, address, seconds
        self._loop = threading.get_ident()  # the thread that is watched
        self._doing: tuple[Phase, float, int] = ("loading", time.monotonic(), 0)
        self._per_token = 0.0
        self._measured = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def expect(self, num_parameters: int) -> None:
        """How long a step may take, before any has been seen."""
        self._per_token = 2 * num_parameters / SLOWEST

    def now(self, phase: Phase, tokens: int = 0) -> None:
        """From now on the loop is doing this; a step computes up to so many tokens."""
        now = time.monotonic()
        before, since, computed = self._doing
        if before == "step":
            seconds = (now - since) / max(1, computed)
            self._per_token = max(seconds, FORGETTING * self._per_token * self._measured)
            self._measured = True
        self._doing = (phase, now, tokens)

    def alive(self) -> Alive:
        """What the front is told now."""
        phase, since, tokens = self._doing
        where = ""
        for name, line in _callers(_frame_of(self._loop)):
            if name.startswith(COMPILERS) and phase != "loading":
                phase = "compiling"
            if name.startswith(OURS) and not where:
                where = f"{name}, line {line}"
        return Alive(phase, time.monotonic() - since, tokens * self._per_token, where)

    def _beat(self) -> None:
        codec, socket = Codec(), self._context.socket(zmq.PUSH)
        socket.linger = 0
        socket.set_hwm(0)
        socket.connect(self._address)
        try:
            while True:
                socket.send(codec.encode(self.alive()))
                if self._stop.wait(self._seconds):
                    return
        finally:
            socket.close()


def _frame_of(thread: int) -> FrameType | None:
    """Where a thread is.

    Python holds a lock on its threads meanwhile, in which no other thread can end. Were garbage
    collected there, a finalizer might wait for such a thread: for ever (CPython 3.11's gh-106883).
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return sys._current_frames().get(thread)
    finally:
        if collects:
            gc.enable()


def _callers(frame: FrameType | None) -> Iterator[tuple[str, int]]:
    """Modules and lines of a function, who called it, and so on."""
    while frame is not None:
        yield frame.f_globals.get("__name__", ""), frame.f_lineno
        frame = frame.f_back
