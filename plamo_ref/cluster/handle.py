"""How the front reaches a replica: through a handle of Ray Serve's.

Invariant: whatever Ray raises when a replica is not there is `LostError`; a stream that is left is
cancelled over there.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol

from plamo_ref.cluster.extra import load
from plamo_ref.cluster.replica import Report
from plamo_ref.errors import PlamoRefError
from plamo_ref.remote.calls import Delta, Job

LATE_SECONDS = 10.0  # without an answer, until a replica counts as lost


class LostError(Exception):
    """The replica is not there, or does not answer."""


class Handle(Protocol):
    """What a replica can be asked. All of it raises `LostError`."""

    async def report(self) -> Report: ...

    def batches(
        self, jobs: Sequence[Job], whole: bool
    ) -> AsyncGenerator[list[Delta] | PlamoRefError, None]: ...

    async def reset_prefix_cache(self) -> None: ...


class ServeHandle:
    """A handle of a deployment that is one `Replica`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        serve, ray = load("ray.serve.exceptions"), load("ray.exceptions")
        self._failures = (serve.RayServeException, ray.RayError, TimeoutError)

    async def report(self) -> Report:
        report = await self._answer(self._handle.report)
        assert isinstance(report, Report)
        return report

    async def reset_prefix_cache(self) -> None:
        await self._answer(self._handle.reset_prefix_cache)

    async def batches(
        self, jobs: Sequence[Job], whole: bool
    ) -> AsyncGenerator[list[Delta] | PlamoRefError, None]:
        stream = self._handle.options(stream=True).batches.remote(jobs, whole)
        try:
            async for batch in stream:
                yield batch
        except self._failures as error:
            raise LostError(type(error).__name__) from error
        finally:
            stream.cancel()

    async def _answer(self, method: Any) -> Any:
        try:
            async with asyncio.timeout(LATE_SECONDS):
                return await method.remote()
        except self._failures as error:
            raise LostError(type(error).__name__) from error
