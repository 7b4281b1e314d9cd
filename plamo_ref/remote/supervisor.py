"""One engine process after the other: start, watch, start again, give up.

Invariant: who has asked for an engine that then goes away is told so, once, before anything else
happens; an engine that hangs goes away, too; after `dead` is set no engine will come any more.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from plamo_ref.engine.config import EngineError
from plamo_ref.errors import PlamoRefError
from plamo_ref.remote.calls import EngineDiedError, EngineUnavailableError
from plamo_ref.remote.child import EngineProcess
from plamo_ref.remote.messages import Failed, Ready, Step, ToEngine, ToFront
from plamo_ref.remote.pulse import Pulse
from plamo_ref.remote.restarts import Life, Restarts

State = Literal["starting", "ready", "stalled", "restarting", "dead", "closed"]
logger = logging.getLogger(__name__)


class Supervisor:
    """Keeps an engine process running.

    Args:
        folder: the checkpoint.
        engine: fields of `EngineConfig`.
        max_restarts: see `Restarts`.
        stall_seconds: after so long without progress an engine is "stalled", after twice as long
            it is ended.
        hear: called with everything that the engine says.
        lost: called when the engine has gone, with the reason; returns how many requests were
            under way.
    """

    def __init__(
        self,
        folder: Path,
        engine: Mapping[str, Any],
        max_restarts: int,
        stall_seconds: float,
        hear: Callable[[ToFront], None],
        lost: Callable[[Exception], int],
    ) -> None:
        self.state: State = "starting"
        self.num_restarts = 0
        self.dead = asyncio.Event()
        self.end = ""  # why no engine will come any more
        self._folder, self._engine = folder, engine
        self._restarts, self._stall_seconds = Restarts(max_restarts), stall_seconds
        self._hear, self._lost = hear, lost
        self._child: EngineProcess | None = None
        self._ready: Ready | None = None
        self._ready_since: float | None = None  # None: this life has not come so far
        self._served = False  # a request, in this life
        self._hang: str | None = None  # how it showed that it hangs
        self._first: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def facts(self) -> Ready:
        """What the engine said when it was ready.

        Raises:
            EngineUnavailableError: no engine is, or it is stalled.
        """
        if self._ready is None or self.state == "stalled":
            raise EngineUnavailableError(f"the engine is {self.state}: try again later")
        return self._ready

    @property
    def engine(self) -> EngineProcess:
        """The engine that can take requests; raises as `facts` does."""
        assert self.facts
        assert self._child is not None
        return self._child

    def tell(self, message: ToEngine) -> None:
        """Say something to the engine, even to a stalled one; without any, to nobody."""
        if self._child is not None and self._ready is not None:
            self._child.send(message)

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
        delay: float | None = 0.0
        while delay is not None:
            await asyncio.sleep(delay)
            try:
                reason = await self._one_life()
            except Exception as error:  # whatever it is, nobody may wait for this engine
                reason = f"{type(error).__name__}: {error}"
                if not isinstance(error, PlamoRefError | OSError):
                    logger.exception("the engine process cannot go on")
            count = self._lost(EngineDiedError(f"the engine process ended unexpectedly ({reason})"))
            if not self._first.done():
                self._first.set_exception(EngineError(reason))
                return
            delay = self._restarts.delay_after(self._life(count))
            self._report(reason, count, delay)
        self.state = "dead"
        self.dead.set()

    def _life(self, num_requests: int) -> Life:
        since = self._ready_since
        seconds = 0.0 if since is None else time.monotonic() - since
        return Life(seconds, self._served, num_requests)

    def _report(self, reason: str, count: int, delay: float | None) -> None:
        message = f"the engine process ended ({reason}) with {count} requests under way"
        if delay is None:
            self.end = f"{message}, {self._restarts}"
            logger.error("%s: it is not started again", self.end)
        else:
            self.state = "restarting"
            self.num_restarts += 1
            logger.warning("%s: the next one starts in %g s", message, delay)

    async def _one_life(self) -> str:
        """Listen to one engine until it is gone. Returns why it went."""
        assert self._first is not None
        reason = None
        self._ready_since, self._served, self._hang = None, False, None
        beat = min(1.0, self._stall_seconds / 4)
        self._child = child = await EngineProcess.start(self._folder, self._engine, beat)
        pulse = Pulse(self._stall_seconds)
        watch = asyncio.create_task(self._watch(child, pulse, beat))
        try:
            async for message in child.messages():
                pulse.hear(message)
                if isinstance(message, Failed):
                    reason = message.message
                if isinstance(message, Ready):
                    self._ready, self.state = message, "ready"
                    self._ready_since = time.monotonic()
                    if not self._first.done():
                        self._first.set_result(None)
                if not self._served and isinstance(message, Step):
                    self._served = any(token.finish_reason for token in message.tokens)
                self._hear(message)
        finally:
            watch.cancel()
            self._child = self._ready = None
            if self.state in ("ready", "stalled"):
                self.state = "restarting"
            await child.close()
        return reason or self._hang or f"exit code {child.exit_code}"

    async def _watch(self, child: EngineProcess, pulse: Pulse, tick: float) -> None:
        """Say so when the engine stalls, and end it when it stays so."""
        while pulse.late <= self._stall_seconds:
            await asyncio.sleep(tick)
            pulse.pass_by(tick)
            if self.state == "ready" and pulse.late > 0:
                self.state = "stalled"
                logger.warning("the engine is stalled: %s", pulse)
            elif self.state == "stalled" and pulse.late <= 0:
                self.state = "ready"
        self._hang = str(pulse)
        await child.kill()
