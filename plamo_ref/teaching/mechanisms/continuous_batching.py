"""Lesson 07: prefill first, in pieces of a fixed size; with nothing to read, decode.

Invariant: a step holds only prefills or only decodes, and no prefill step exceeds `budget` tokens.
Built in notebooks/07_continuous_batching.ipynb.
"""

from collections import deque
from typing import Protocol, TypeVar


class Unfinished(Protocol):
    """A request of the lesson."""

    @property
    def left(self) -> int:
        """Tokens that are known and not computed."""

    @property
    def decoding(self) -> bool:
        """Whether its next step makes the next token of its answer."""


R = TypeVar("R", bound=Unfinished)


def v0(
    waiting: deque[R], running: list[R], seats: int, budget: int, chunk: int = 10**9
) -> dict[R, int]:
    """Tokens that this step computes of each, in the order of service; newcomers begin to run."""
    share: dict[R, int] = {}
    for r in [r for r in running if not r.decoding]:
        if min(r.left, chunk) > budget:
            return share
        share[r] = min(r.left, chunk)
        budget -= share[r]
    while waiting and len(running) < seats and min(waiting[0].left, chunk) <= budget:
        r = waiting.popleft()
        running.append(r)
        share[r] = min(r.left, chunk)
        budget -= share[r]
    return share or dict.fromkeys(running, 1)
