"""One replica, as the front sees it: how it is, what it has to do, and the calls that it answers.

Invariant: whoever waits for a replica that is lost is told so at once; nobody is sent to one that
has not said, in the life that it lives now, that it is ready.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any

from plamo_ref.cluster.extra import load
from plamo_ref.cluster.replica import Report
from plamo_ref.errors import PlamoRefError
from plamo_ref.remote.calls import Delta, EngineDiedError, Job
from plamo_ref.remote.messages import Stats
from plamo_ref.remote.supervisor import State

POLL_SECONDS = 0.5  # between two reports
LATE_SECONDS = 10.0  # without an answer, until a replica counts as lost


class Seat:
    """The place of a replica: whoever sits there.

    Args:
        name: as metrics and errors say it.
        handle: Serve's, of a deployment that is one `Replica`.
        lost: called when what the replica had computed is gone.
    """

    def __init__(self, name: str, handle: Any, lost: Callable[[], None]) -> None:
        self.name, self._handle, self._lost = name, handle, lost
        self._report = Report("", "starting")
        self._num_lives = 0
        self.num_requests = 0  # under way

    @property
    def state(self) -> State:
        return self._report.state

    @property
    def end(self) -> str:
        return self._report.end

    @property
    def stats(self) -> Stats:
        return self._report.stats

    @property
    def num_restarts(self) -> int:
        """Of the replica, and of the engine in it since."""
        return max(0, self._num_lives - 1) + self._report.num_restarts

    @property
    def max_model_len(self) -> int:
        return self._report.max_model_len

    @property
    def vocab_size(self) -> int:
        return self._report.vocab_size

    async def watch(self) -> None:
        """Ask it how it is, for ever."""
        while True:
            try:
                self._hear(await asyncio.wait_for(self._asked(), LATE_SECONDS))
            except _failures():
                self._is_lost()
            await asyncio.sleep(POLL_SECONDS)

    async def batches(
        self, jobs: Sequence[Job], *, whole: bool
    ) -> AsyncGenerator[list[Delta], None]:
        """As `EngineClient.batches`.

        Raises:
            EngineDiedError: the replica was lost meanwhile.
            PlamoRefError: what its engine says.
        """
        stream = self._handle.options(stream=True).batches.remote(jobs, whole)
        try:
            async for batch in stream:
                if isinstance(batch, PlamoRefError):
                    raise batch
                yield batch
        except _failures() as error:
            self._is_lost()
            reason = type(error).__name__
            message = f"replica {self.name} was lost while it worked on this request ({reason})"
            raise EngineDiedError(message) from error
        finally:
            stream.cancel()

    async def reset_prefix_cache(self) -> None:
        """Let it forget; one that is lost has nothing to forget."""
        try:
            await self._handle.reset_prefix_cache.remote()
        except _failures():
            self._is_lost()

    async def _asked(self) -> Report:
        report = await self._handle.report.remote()
        assert isinstance(report, Report)
        return report

    def _hear(self, report: Report) -> None:
        if report.life != self._report.life:
            self._num_lives += 1
            self._lost()
        if report.state == "stalled":  # its size has not changed
            report = replace(report, max_model_len=self.max_model_len, vocab_size=self.vocab_size)
        self._report = report

    def _is_lost(self) -> None:
        if self._report.life:
            self._report = replace(self._report, state="restarting", stats=Stats(), num_restarts=0)
            self._lost()


def _failures() -> tuple[type[Exception], ...]:
    """What Ray raises when a replica is not there, or fails."""
    serve, ray = load("ray.serve.exceptions"), load("ray.exceptions")
    return serve.RayServeException, ray.RayError, TimeoutError
