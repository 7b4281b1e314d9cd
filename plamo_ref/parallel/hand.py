"""The thread in which the driver obeys its own orders.

An interrupt (ctrl-C, a caller's exception) comes to the thread that steps the engine. There it must
not stop what all ranks do together: a driver that leaves in the middle of it leaves the others
waiting. Here nothing is interrupted: whoever is, goes, and what was begun is finished.

Invariant: work is done in the order in which it was given, each to its end; nobody waits for work
once the ranks cannot finish it (`Watch.failure`).
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from plamo_ref.engine.config import EngineError
from plamo_ref.errors import PlamoRefError
from plamo_ref.parallel.group import LostError

T = TypeVar("T")
Given = tuple[Callable[[], Any], Future[Any]]
LOOK_SECONDS = 0.2  # between two looks at whether all ranks live, while something takes long
STOP_SECONDS = 2.0
NAME_SECONDS = 3.0  # for who is to blame to be known, when work has failed here


class Watch(Protocol):
    """Who knows whether all ranks are well."""

    @property
    def failure(self) -> str | None:
        """Which rank failed, and why; None: none."""
        ...

    def fail(self, rank: int, why: str, *, lost: bool = False) -> None:
        """Let it be known. `lost`: another rank is to blame, as far as one can see."""
        ...

    def wait(self, seconds: float) -> None:
        """Until somebody has failed by his own fault, or for so long."""
        ...


class Hand:
    """One thread and what it has to do."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._given: SimpleQueue[Given | None] = SimpleQueue()
        self._thread = threading.Thread(
            target=_work, args=(self._given, watch), name="rank 0", daemon=True
        )
        self._thread.start()

    def do(self, work: Callable[[], T]) -> T:
        """What `work` returns.

        Raises:
            EngineError: a rank has failed, now or before; this engine is over.
            PlamoRefError: what `work` refuses.
        """
        return self.result(self.start(work))

    def start(self, work: Callable[[], T]) -> "Future[T]":
        """Give `work` and wait for nothing; for whoever wants it, see `result`. Raises as `do`."""
        self.check()
        done: Future[T] = Future()
        self._given.put((work, done))
        return done

    def result(self, done: "Future[T]") -> T:
        """Wait for what was started. Raises as `do`."""
        while not wait([done], LOOK_SECONDS).done:
            self.check()
        if (error := done.exception()) is None:
            return done.result()
        if isinstance(error, PlamoRefError):
            raise error
        raise EngineError(self._watch.failure or str(error)) from error

    def check(self) -> None:
        """Raises EngineError: a rank has failed."""
        if (failure := self._watch.failure) is not None:
            raise EngineError(failure)

    def finish(self) -> None:
        """Wait until nothing is left to do, or a rank has failed."""
        if threading.current_thread() is not self._thread and self._thread.is_alive():
            with suppress(PlamoRefError):
                self.do(_nothing)

    def stop(self) -> None:
        """Let the thread end behind what it has to do, and wait for it, unless it hangs."""
        self._given.put(None)
        if threading.current_thread() is not self._thread:  # a collector may run anywhere
            self._thread.join(STOP_SECONDS)


def _nothing() -> None:
    pass


def _work(queue: "SimpleQueue[Given | None]", watch: Watch) -> None:
    while (given := queue.get()) is not None:
        work, done = given
        try:
            result = work()
        except BaseException as error:
            _blame(error, watch)  # before anybody hears of it: he may be interrupted as well
            done.set_exception(error)
        else:
            done.set_result(result)
            del result
        del given, work, done  # or what they hold would live until something comes


def _blame(error: BaseException, watch: Watch) -> None:
    """Somebody has failed: one of the others, or the driver itself."""
    lost = isinstance(error, LostError)
    if lost:
        watch.wait(NAME_SECONDS)
    watch.fail(0, str(error) if lost else f"{type(error).__name__}: {error}", lost=lost)
