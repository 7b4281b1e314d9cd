"""One engine process after the other: start, watch, start again, give up.

Invariant: who has asked for an engine that then goes away is told so, once, before anything else
happens; after `dead` is set no engine will come any more.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from plamo_ref.engine.calls import EngineDiedError, EngineUnavailableError
from plamo_ref.engine.child import EngineProcess
from plamo_ref.engine.config import EngineError
from plamo_ref.engine.messages import Failed, Ready, ToFront
from plamo_ref.errors import PlamoRefError

State = Literal["starting", "ready", "restarting", "dead", "closed"]
STABLE_SECONDS = 60.0  # an engine that was ready so long did not die young
RESTART_SECONDS = 0.5  # between an end and the next start
logger = logging.getLogger(__name__)


class Supervisor:
    """Keeps an engine process running.

    Args:
        folder: the checkpoint.
        engine: fields of `EngineConfig`.
        max_restarts: how often in a row an engine that died young is started again; 0: never.
        hear: called with everything that the engine says.
        lost: called when the engine has gone, with the reason.
    """

    def __init__(
        self,
        folder: Path,
        engine: Mapping[str, Any],
        max_restarts: int,
        hear: Callable[[ToFront], None],
        lost: Callable[[Exception], None],
    ) -> None:
        self.state: State = "starting"
        self.num_restarts = 0
        self.dead = asyncio.Event()
        self._folder, self._engine, self._max_restarts = folder, engine, max_restarts
        self._hear, self._lost = hear, lost
        self._child: EngineProcess | None = None
        self._ready: Ready | None = None
        self._ready_since = math.inf  # inf: this life has not come so far
        self._first: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def facts(self) -> Ready:
        """What the engine said when it was ready.

        Raises:
            EngineUnavailableError: no engine is.
        """
        if self._ready is None:
            raise EngineUnavailableError(f"the engine is {self.state}: try again later")
        return self._ready

    @property
    def engine(self) -> EngineProcess:
        """The engine that is ready; raises as `facts` does."""
        assert self.facts
        assert self._child is not None
        return self._child

    async def start(self) -> None:
        """Start the first engine and wait until it can work.

        Raises:
            EngineError: it cannot; the message is the engine's own.
        """
        self._first = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())
        try:
            await asyncio.shield(self._first)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the engine. Afterwards the object is of no use."""
        self.state, self._ready = "closed", None
        self._lost(EngineUnavailableError("the engine was shut down"))
        if self._task is not None:
            self._task.cancel()  # it takes its engine with it
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        assert self._first is not None
        failures = 0
        while failures <= self._max_restarts:
            self.num_restarts += bool(failures)
            try:
                reason = await self._one_life()
            except Exception as error:  # whatever it is, nobody may wait for this engine
                reason = f"{type(error).__name__}: {error}"
                if not isinstance(error, PlamoRefError | OSError):
                    logger.exception("the engine process cannot go on")
            self._lost(EngineDiedError(f"the engine process ended unexpectedly ({reason})"))
            stable = time.monotonic() - self._ready_since > STABLE_SECONDS
            failures = 1 if stable else failures + 1
            if not self._first.done():
                self._first.set_exception(EngineError(reason))
            if failures <= self._max_restarts:
                self.state = "restarting"
                await asyncio.sleep(RESTART_SECONDS)
        self.state = "dead"
        self.dead.set()

    async def _one_life(self) -> str:
        """Listen to one engine until it is gone. Returns why it went."""
        assert self._first is not None
        reason = None
        self._ready_since = math.inf
        self._child = child = await EngineProcess.start(self._folder, self._engine)
        try:
            async for message in child.messages():
                if isinstance(message, Failed):
                    reason = message.message
                if isinstance(message, Ready):
                    self._ready, self.state = message, "ready"
                    self._ready_since = time.monotonic()
                    if not self._first.done():
                        self._first.set_result(None)
                self._hear(message)
        finally:
            self._child = self._ready = None
            if self.state == "ready":
                self.state = "restarting"
            await child.close()
        return reason or f"exit code {child.exit_code}"
