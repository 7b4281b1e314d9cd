"""Lesson 08: one token budget, running requests first, then waiting ones.

Invariant: no step computes more than `budget` tokens; a prompt is cut where the budget ends.
Built in notebooks/08_v1_scheduler.ipynb.
"""

from collections import deque
from typing import Protocol, TypeVar


class Unfinished(Protocol):
    """A request of the lesson."""

    @property
    def left(self) -> int:
        """Tokens that are known and not computed."""


R = TypeVar("R", bound=Unfinished)


def v1(waiting: deque[R], running: list[R], seats: int, budget: int) -> dict[R, int]:
    """Tokens that this step computes of each, in the order of service; newcomers begin to run."""
    share: dict[R, int] = {}
    for r in running:
        if budget:
            share[r] = min(r.left, budget)
            budget -= share[r]
    while budget and waiting and len(running) < seats:
        r = waiting.popleft()
        running.append(r)
        share[r] = min(r.left, budget)
        budget -= share[r]
    return share
