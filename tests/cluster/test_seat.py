"""A seat by itself: what it does at the moment when its replica is lost, before it is asked again.

Invariant tested: from that moment on nobody is sent there and what it knew counts for nothing,
until a report says that it is there; who was never there has nothing to lose.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from plamo_ref.cluster import seat
from plamo_ref.cluster.handle import LostError
from plamo_ref.cluster.replica import Report
from plamo_ref.cluster.seat import Seat
from plamo_ref.errors import PlamoRefError
from plamo_ref.remote.calls import Delta, EngineDiedError, EngineUnavailableError, Job
from plamo_ref.remote.messages import Stats

READY = Report("first life", "ready", stats=Stats(num_running=3))


class Scripted:
    """A handle that gives these reports, one after the other, and always the same stream."""

    def __init__(self, *reports: Report | LostError, stream: Sequence[object] = ()) -> None:
        self.reports, self.stream = list(reports), stream

    async def report(self) -> Report:
        await asyncio.sleep(0)
        return self._given(self.reports.pop(0))

    async def batches(
        self, jobs: Sequence[Job], whole: bool
    ) -> AsyncGenerator[list[Delta] | PlamoRefError, None]:
        for each in self.stream:
            yield self._given(each)

    async def reset_prefix_cache(self) -> None:
        raise LostError("RayActorError")

    def _given(self, each: object) -> object:
        if isinstance(each, LostError):
            raise each
        return each


def seated(handle: Scripted, report: Report = READY) -> tuple[Seat, list[str]]:
    """A seat that has heard `report`, and how often it said that all was lost."""
    losses: list[str] = []
    place = Seat("1", handle, lambda: losses.append("lost"))
    place.report = report
    return place, losses


async def read(place: Seat) -> list[list[Delta]]:
    return [batch async for batch in place.batches([], whole=False)]


@pytest.mark.parametrize(
    ("said", "raised", "words"),
    [
        (LostError("RayActorError"), EngineDiedError, "replica 1 was lost while .*RayActorError"),
        (EngineDiedError("killed by signal 9"), EngineDiedError, "^killed by signal 9$"),
        (EngineUnavailableError("it starts"), EngineUnavailableError, "^it starts$"),
    ],
    ids=["the actor", "its engine", "its engine before"],
)
def test_a_stream_that_breaks_empties_the_seat_at_once(said, raised, words):
    place, losses = seated(Scripted(stream=[[], said]))
    with pytest.raises(raised, match=words):
        asyncio.run(read(place))
    assert (place.state, place.stats, losses) == ("restarting", Stats(), ["lost"])
    assert place.report.life == READY.life  # so the next report tells an old life from a new one


def test_what_a_request_did_wrong_empties_no_seat():
    place, losses = seated(Scripted(stream=[PlamoRefError("too long")]))
    with pytest.raises(PlamoRefError, match="too long"):
        asyncio.run(read(place))
    assert (place.report, losses) == (READY, [])


def test_who_cannot_be_told_to_forget_has_forgotten():
    place, losses = seated(Scripted())
    asyncio.run(place.reset_prefix_cache())
    assert (place.state, losses) == ("restarting", ["lost"])


def test_a_report_that_does_not_come_empties_the_seat_until_one_does(monkeypatch):
    monkeypatch.setattr(seat, "POLL_SECONDS", 0)
    reports = (READY, LostError("TimeoutError"), Report("second life", "ready"))
    place, losses = seated(Scripted(*reports), Report("", "starting"))
    with pytest.raises(IndexError):  # the script is at its end
        asyncio.run(asyncio.wait_for(place.watch(), 5))
    assert (place.state, place.num_restarts) == ("ready", 1)
    assert losses == ["lost", "lost", "lost"]  # it came, was lost, and came anew


def test_a_seat_that_nobody_has_taken_yet_has_nothing_to_lose():
    place, losses = seated(Scripted(stream=[LostError("RayActorError")]), Report("", "starting"))
    with pytest.raises(EngineDiedError):
        asyncio.run(read(place))
    assert (place.state, losses) == ("starting", [])
