"""Lesson 08: one token budget, running requests first, then waiting ones.

Invariant: no step computes more than `budget` tokens; a prompt is cut where the budget ends.
Built in notebooks/08_v1_scheduler.ipynb.
Below it: the slips that the self-check knows by name.
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


# What the lesson's checks say → the story to which this mistake leads.
# Of exercise 1: shares, who runs|waits, in three trials.
SLIPS = {
    "running requests come first": "D6A1B5C1 ABCD|EF / D4 ABCD|EF / D6E4 ABCDE|F",
    "shares use up the budget": "A1B5C1D6 ABCD|EF / A1B4C1D4E4F1 ABCDEF| / A1B5C1D6E5 ABCDE|F",
    "no budget, no share, not even 0": "A1B5C1D6 ABCD|EF / A1B3C0 ABC|DEF / A1B5C1D3 ABCD|EF",
    "newcomers need a free seat": "A1B5C1D6E2 ABCDE|F / A1B3 ABC|DEF / A1B5C1D3 ABCD|EF",
    "not everybody who runs decodes": "A1B1C1D6 ABCD|EF / A1B1C1D1 ABCD|EF / A1B1C1D6E1 ABCDE|F",
    "what does not fit is cut, not left": "A1B5C1D6 ABCD|EF / A1C1 ABC|DEF / A1B5C1 ABC|DEF",
    "who is served leaves `waiting`": "A1B5C1D6 ABCD|DEF / A1B3 ABC|DEF / A1B5C1D3 ABCD|DEF",
    "who is served runs from now on": "A1B5C1D6E2 ABC|F / A1B3 ABC|DEF / A1B5C1D3 ABC|EF",
    "what is left of D is more than its prompt: D was preempted": (
        "A1B5C1D2 ABCD|EF / A1B3 ABC|DEF / A1B5C1D2E1 ABCDE|F"
    ),
    "the oldest of `running` stands first": "C1B5A1D6 ABCD|EF / C1B3 ABC|DEF / C1B5A1D3 ABCD|EF",
    "decodes do not go first: V1 does not ask": (
        "A1C1B5D6 ABCD|EF / A1C1B2 ABC|DEF / A1C1B5D3 ABCD|EF"
    ),
    "a newcomer stands behind those who run": "A1B5C1D6 DABC|EF / A1B3 ABC|DEF / A1B5C1D3 DABC|EF",
    "of a running request, too, what fits is taken": (
        "A1B5C1D6 ABCD|EF / A1D3 ABCD|EF / A1B5C1D3 ABCD|EF"
    ),
    "waiting requests are served, too": "A1B5C1 ABC|DEF / A1B3 ABC|DEF / A1B5C1 ABC|DEF",
    "the oldest waits at the front": "A1B5C1F1 ABCF|DE / A1B3 ABC|DEF / A1B5C1F1E2 ABCFE|D",
}

# Of exercise 3: shares in five trials, A's longest pause.
NEWCOMERS_SLIPS = {
    "running requests still go first": "A3 B1 C3 D2/A3 B1 C2/A3 B1 C1/A3 B1/A3/1",
    "leave out those for whom no budget is left": (
        "A3 B1 C3 D2/A3 B0 C3/A0 B0 C3 D2/A3 B1/A0 B0 C3/1"
    ),
    "newcomers, too, need a free seat": "A3 B1 C3 D2/A1 C3 D2/C3 D2/A2 C3 D2/C3/3",
    "whoever came in now is served twice: copy `running` first": "B1 C3 D2/C3/C3 D2/A3 B1/C3/3",
    "who comes in now is served twice: copy `running` first": "A3 B1 C2 D2/A3 C3/C3 D2/A3 B1/C3/3",
    "the budget shrinks with the old ones' shares, too": "A3 B1 C3 D2/A3 B1 C3/C3 D2/A3 B1/C3/3",
    "the budget shrinks with the newcomers' shares, too": (
        "A3 B1 C3 D2/A3 B1 C3/A3 B1 C3 D2/A3 B1/A3 C3 D2/1"
    ),
    "whoever ran gets all that is left of it": "A1 B1 C3 D2/A1 B1 C3/C3 D2/A1 B1/C3/3",
    "more than one newcomer may come in a step": "A3 B1 C3/A3 C3/A2 C3/A3 B1/C3/4",
    "the front of the queue comes first": "A3 B1 C3 D2/A3 B1 D2/C3 D2/A3 B1/C1 D2/1",
    "who begins runs from now on": "A3 B1 C3 D2/A1 C3 D2/C3 D2/A3 B1/C3/0",
    "the old in their order": "A3 B1 C3 D2/A2 B1 C3/C3 D2/A3 B1/C1 D2/1",
    "at most `seats` run, not one more": "A3 B1 C3 D2/A1 C3 D2/C3 D2/A3 B1 C3/C3/3",
}
