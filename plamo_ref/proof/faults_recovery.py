"""Faults of recovery: what survives a broken-off step although it must not.

Invariant: none of them shows in a scenario in which nothing is interrupted.
"""

from typing import Any

from plamo_ref.engine import core as core_module
from plamo_ref.engine import recovery as recovery_module
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Queues
from plamo_ref.proof.planting import Fault, patch


def _keep_flight(recover: Any, core: EngineCore) -> None:
    flight = core._flight
    recover(core)
    core._flight = flight


def _keep_books(_: Any, queues: Queues) -> None:
    queues.waiting.clear()
    queues.running.clear()


def _forget_progress(look: Any, request: Request) -> None:
    look(request)
    if request.guide is not None:
        request.guide.restart([])


def _newest_first(rebuild: Any, requests: Any, queues: Queues) -> Any:
    ended = rebuild(requests, queues)
    queues.waiting.reverse()
    return ended


RECOVERY_FAULTS = (
    Fault(
        "interrupted step lands later",
        "An interrupt ends a step, but the one that is under way is still waited for.",
        "law",
        patch(EngineCore, "recover", _keep_flight),
    ),
    Fault(
        "memory kept over an interrupt",
        "All who were running start again, and the books still have them.",
        "audit",
        patch(Queues, "clear", _keep_books),
    ),
    Fault(
        "grammar begins again after an interrupt",
        "The request goes on where its text was, its grammar at the beginning.",
        "law",
        patch(recovery_module, "_look_at_output", _forget_progress),
    ),
    Fault(
        "newest first after an interrupt",
        "Who came last is the first to run again.",
        "schedule",
        patch(core_module, "rebuild", _newest_first),
    ),
)
