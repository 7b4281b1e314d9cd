"""A replica: an engine in an actor of Ray Serve, which starts it again when it is lost.

Invariant: what its client can mend travels as a value, never as a failure of the actor; whoever
stops reading a stream has its requests aborted. The engine's own process is restarted here
(`Supervisor`); when that has been given up, or the actor dies, Serve makes another replica.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from plamo_ref.engine.pauses import set_aside
from plamo_ref.errors import PlamoRefError
from plamo_ref.remote.async_llm import AsyncLLM
from plamo_ref.remote.calls import Delta, Job
from plamo_ref.remote.messages import Stats
from plamo_ref.remote.supervisor import State

# What a message costs Ray on its way, about. Each stream waits so long for each that is
# under way, and then sends what has come meanwhile. One alone sends every token.
MESSAGE_SECONDS = 0.001
MOST_SECONDS = 0.1  # … of waiting
HEARD_SECONDS = 5.0  # for the front to hear why an engine is gone, before Serve ends the replica


@dataclass(frozen=True)
class Report:
    """What a replica says of itself."""

    life: str  # of this actor; another one has another
    state: State
    end: str = ""  # why no engine will come any more
    num_restarts: int = 0  # of its engine process
    max_model_len: int = 0  # 0: not known yet
    vocab_size: int = 0
    stats: Stats = field(default_factory=Stats)


class Replica:
    """The engine, as Serve calls it. Arguments are those of `AsyncLLM`."""

    def __init__(self, model: str, settings: Mapping[str, Any]) -> None:
        self._life, self._end, self._ended = uuid.uuid4().hex, "", 0.0
        self._llm: AsyncLLM | None = None
        self._num_streams = 0
        self._living = asyncio.create_task(self._live(model, settings))

    async def _live(self, model: str, settings: Mapping[str, Any]) -> None:
        try:
            self._llm = AsyncLLM(model, **settings)
            await self._llm.start()
        except PlamoRefError as error:
            self._end, self._ended = str(error), time.monotonic()
            return
        set_aside()
        await self._llm.dead.wait()
        self._end, self._ended = self._llm.end, time.monotonic()

    async def report(self) -> Report:
        """How it is."""
        llm = self._llm
        if self._end:
            return Report(self._life, "dead", self._end)
        if llm is None or llm.state not in ("ready", "stalled"):
            restarts = 0 if llm is None else llm.num_restarts
            return Report(self._life, "starting" if llm is None else llm.state, "", restarts)
        facts = (llm.max_model_len, llm.vocab_size) if llm.state == "ready" else (0, 0)
        return Report(self._life, llm.state, "", llm.num_restarts, *facts, llm.stats)

    async def batches(
        self, jobs: Sequence[Job], whole: bool
    ) -> AsyncGenerator[list[Delta] | PlamoRefError, None]:
        """As `EngineClient.batches`; what that raises comes as the last value."""
        self._num_streams += not whole
        try:
            assert self._llm is not None, "asked before it had said that it is ready"
            async with aclosing(self._llm.batches(jobs, whole=whole)) as batches:
                async for batch in batches:
                    yield batch
                    if not whole:
                        await asyncio.sleep(min(MESSAGE_SECONDS * self._num_streams, MOST_SECONDS))
        except PlamoRefError as error:
            yield error
        finally:
            self._num_streams -= not whole

    async def reset_prefix_cache(self) -> None:
        if self._llm is not None:
            await self._llm.reset_prefix_cache()

    async def check_health(self) -> None:
        """Asked by Serve, which ends a replica that raises, and starts another one."""
        if self._end and time.monotonic() - self._ended > HEARD_SECONDS:
            raise RuntimeError(self._end)
