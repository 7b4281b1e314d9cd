"""One replica, as the front sees it: how it is, what it has to do, and the calls that it answers.

Invariant: whoever waits for a replica that is lost is told so at once; nobody is sent to one that
has not said, in the life that it lives now, that it is ready.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from plamo_ref.cluster.handle import Handle, LostError
from plamo_ref.cluster.replica import Report
from plamo_ref.errors import PlamoRefError
from plamo_ref.remote.calls import Delta, EngineDiedError, EngineUnavailableError, Job
from plamo_ref.remote.messages import Stats
from plamo_ref.remote.supervisor import State

POLL_SECONDS = 0.5  # between two reports


class Seat:
    """The place of a replica: whoever sits there.

    Args:
        name: as metrics and errors say it.
        handle: the way to it.
        lost: called when what the replica had computed is gone.
    """

    def __init__(self, name: str, handle: Handle, lost: Callable[[], None]) -> None:
        self.name, self._handle, self._lost = name, handle, lost
        self.report = Report("", "starting")  # its last one
        self.num_requests = 0  # under way
        self._restarts_before = 0  # in earlier lives

    @property
    def state(self) -> State:
        return self.report.state

    @property
    def stats(self) -> Stats:
        return self.report.stats

    @property
    def num_restarts(self) -> int:
        """Of the replica, and of the engines in it."""
        return self._restarts_before + self.report.num_restarts

    async def watch(self) -> None:
        """Ask it how it is, for ever."""
        while True:
            try:
                self._hear(await self._handle.report())
            except LostError:
                self._is_lost()
            await asyncio.sleep(POLL_SECONDS)

    async def batches(
        self, jobs: Sequence[Job], *, whole: bool
    ) -> AsyncGenerator[list[Delta], None]:
        """As `EngineClient.batches`.

        Raises:
            EngineDiedError: the replica was lost meanwhile, or its engine.
            EngineUnavailableError: its engine starts anew; nothing was started.
            PlamoRefError: what its engine says.
        """
        try:
            async with aclosing(self._handle.batches(jobs, whole)) as batches:
                async for batch in batches:
                    if isinstance(batch, EngineDiedError | EngineUnavailableError):
                        self._is_lost()  # until it says that it is there again
                    if isinstance(batch, PlamoRefError):
                        raise batch
                    yield batch
        except LostError as error:
            self._is_lost()
            message = f"replica {self.name} was lost while it worked on this request ({error})"
            raise EngineDiedError(message) from None

    async def reset_prefix_cache(self) -> None:
        """Let it forget; one that is lost has nothing to forget."""
        try:
            await self._handle.reset_prefix_cache()
        except LostError:
            self._is_lost()

    def _hear(self, report: Report) -> None:
        before, self.report = self.report, report
        if before.life and before.life != report.life:
            self._restarts_before += before.num_restarts + 1
        if (before.life, before.num_restarts) != (report.life, report.num_restarts):
            self._lost()

    def _is_lost(self) -> None:
        if self.report.life:
            self.report = replace(self.report, state="restarting", stats=Stats())
            self._lost()
