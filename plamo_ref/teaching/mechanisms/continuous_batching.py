"""Lesson 07: prefill first, in pieces of a fixed size; with nothing to read, decode.

Invariant: a step holds only prefills or only decodes, and no prefill step exceeds `budget` tokens.
Built in notebooks/07_continuous_batching.ipynb.
Below it: the steps that the self-check asks, and the slips that it knows by name.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TypeVar


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


# Four steps for the self-check: who runs, who waits, and `v0`'s limits. A request is four numbers:
# prompt, output, made, computed. A C decode; B G H K are half read; D E F wait.
_NUMBERS = {
    "A": (3, 9, 2, 4), "B": (9, 5, 2, 4), "C": (2, 5, 3, 4), "D": (6, 1), "E": (2, 8, 3),
    "F": (1, 4), "G": (8, 3, 0, 2), "H": (4, 6, 0, 3), "K": (3, 9, 6, 2),
}  # fmt: skip
_STEPS = (
    ("ABC", "DEF", 5, 15, 4),
    ("AC", "DEF", 4, 5),
    ("BGA", "FD", 6, 8, 5),
    ("AHK", "F", 4, 7, 5),
)


def told(policy: Callable[..., Any], request: Callable[..., Any]) -> list[str]:
    """What a policy does in the four steps: who gets how much, and who then runs|waits.

    Args:
        request: name and numbers → a request as the policy knows it.
    """
    return [_told(policy, request, *step) for step in _STEPS]


def _told(
    policy: Callable[..., Any], request: Callable[..., Any], who: str, queue: str, *limits: int
) -> str:
    running, waiting = ([request(n, *_NUMBERS[n]) for n in names] for names in (who, queue))
    computed = {r: r.computed for r in [*running, *waiting]}
    share = policy(line := deque(waiting), running, *limits).items()
    given = "".join(f"{getattr(r, 'name', '?')}{new}" for r, new in share)
    after = "|".join("".join(r.name for r in each) for each in (running, line))
    if any(r.computed > done for r, done in computed.items()):
        after += ", and `computed` is raised, which `simulate` does"
    return f"{given} {after}"


_RIGHT = ["B4D4E4 ABCDE|F", "A1C1 AC|DEF", "B5 BGA|FD", "H1K5F1 AHKF|"]

# Slips: the sentence that mends each, and the steps in which another story is told then.
_SLIPS: dict[str, dict[int, str]] = {
    "prefills or decodes, never both": {0: "B4D4E4A1C1 ABCDE|F", 3: "H1K5F1A1 AHKF|"},
    "reading comes first, not decoding": {0: "A1C1 ABC|DEF", 2: "A1 BGA|FD", 3: "A1 AHK|F"},
    "newcomers need a free seat": {0: "B4D4E4F1 ABCDEF|"},
    "nobody is passed over": {1: "E5 ACE|DF", 2: "B5F1 BGAF|D"},
    "no room for the half-read: no newcomers": {2: "B5F1 BGAF|D"},
    "who is half read comes before newcomers": {
        0: "D4E4B4 ABCDE|F", 2: "F1D5 BGAFD|", 3: "F1H1K5 AHKF|",
    },
    "a piece is read whole or not at all": {1: "D5 ACD|EF", 2: "B5G3 BGA|FD"},
    "a piece is at most `chunk` tokens": {0: "B7D6 ABCD|EF", 2: "B7 BGA|FD", 3: "H1 AHK|F"},
    "pieces use up the budget": {2: "B5G5F1D5 BGAFD|"},
    "if nothing was read, all decode": {1: " AC|DEF"},
    "`made` alone is not `decoding`": {0: "D4E4 ABCDE|F", 2: "G5F1 BGAF|D", 3: "H1F1 AHKF|"},
    "`left` alone is not `decoding`: a prompt can have one token left": {3: "K5F1 AHKF|"},
    "what was made is read again, too": {0: "B4D4E2 ABCDE|F", 3: "H1K1F1 AHKF|"},
    "what the half-read have made is read again, too": {3: "H1K1F1 AHKF|"},
    "what newcomers have made is read again, too": {0: "B4D4E2 ABCDE|F"},
    "a piece may use the budget up": {3: "H1K5 AHK|F"},
    "a piece has to fit, not all that is left": {3: "H1 AHK|F"},
    "the oldest first": {2: "G5 BGA|FD", 3: "K5H1F1 AHKF|"},
    "newcomers go to the end of `running`": {0: "B4D4E4 EDABC|F", 3: "H1K5F1 FAHK|"},
    "newcomers begin to run": {0: "B4D4E4F1 ABC|", 3: "H1K5F1 AHK|"},
    "the queue is served from its front": {0: "B4F1E4 ABCFE|D", 1: "F1 ACF|DE"},
    "who is read leaves the queue": {0: "B4D4E4 ABCDE|DEF", 3: "H1K5F1 AHKF|F"},
    "the keys are requests, not names": {
        0: "?4?4?4 ABCDE|F", 1: "?1?1 AC|DEF", 2: "?5 BGA|FD", 3: "?1?5?1 AHKF|",
    },
}  # fmt: skip
SLIPS = {
    sentence: [story.get(step, right) for step, right in enumerate(_RIGHT)]
    for sentence, story in _SLIPS.items()
}
