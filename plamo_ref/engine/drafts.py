"""Guesses that a step computes behind the known tokens of its requests: see speculation/drafter.py.

Invariant: wherever guesses are side by side, they are so in the order of `Drafts`, request by
request.
Built in notebooks/16_sampling_and_guided_decoding.ipynb.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from plamo_ref.engine.request import Request

if TYPE_CHECKING:
    from torch import Tensor

    from plamo_ref.engine.scheduling.scheduler import Queues, Schedule


class Draft(NamedTuple):
    """What probably comes behind the tokens that a step computes of a request."""

    token_ids: tuple[int, ...]
    slot: int | None  # for the state behind those tokens, before the guesses; None: there is none


class Drafts(dict[Request, Draft]):
    """Of the requests that have one."""

    def guesses(self, request: Request) -> tuple[int, ...]:
        """Of any request."""
        draft = self.get(request)
        return () if draft is None else draft.token_ids

    def chosen(self, sampled: Sequence[Request]) -> Sequence[Request]:
        """For whom a token is chosen: those who get one, and whose each guess is."""
        return (*sampled, *self.owners) if self else sampled

    @property
    def owners(self) -> list[Request]:
        """Whose each guess is."""
        return [request for request, draft in self.items() for _ in draft.token_ids]

    def numbers(self, sampled: Sequence[Request]) -> list[int]:
        """Of the outputs that these get, and behind each guess: how many come before."""
        numbers = [len(request.output_ids) + request.num_unread_tokens for request in sampled]
        for request, draft in self.items():
            first = len(request.output_ids) + 1
            numbers += range(first, first + len(draft.token_ids))
        return numbers

    def rows(self, requests: Sequence[Request], known: np.ndarray) -> np.ndarray:
        """Of each guess. `known`: rows of the last known tokens of the step's requests."""
        places = ((known[requests.index(r)], len(draft.token_ids)) for r, draft in self.items())
        rows = [row + 1 + at for row, count in places for at in range(count)]
        return np.array(rows, dtype=np.int64)

    def photographs(
        self, requests: Sequence[Request], counts: Sequence[int]
    ) -> list[tuple[int, int, int]]:
        """Of whom, behind how many known tokens, into which slot."""
        places = ((requests.index(request), draft.slot) for request, draft in self.items())
        return [(at, counts[at], slot) for at, slot in places if slot is not None]


class Drafter(Protocol):
    """Who guesses."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Drafts until now, their tokens, and those of them that were right."""
        ...

    def wants(self, requests: Sequence[Request]) -> bool:
        """Whether it has to see their newest tokens before the next step is decided."""
        ...

    def draft(self, schedule: "Schedule") -> None:
        """Add drafts to a step that is decided."""
        ...

    def launched(self, schedule: "Schedule") -> None:
        """The step is on its way."""
        ...

    def take(self, drafts: Drafts, chosen: Sequence[int]) -> list[tuple[Request, int]]:
        """Give requests the tokens behind right guesses. Returns to whom, and number of each."""
        ...


def launched(queues: "Queues", schedule: "Schedule") -> None:
    """A step is on its way: later ones find what it writes."""
    queues.prefix.develop(schedule.photographs)
    if queues.drafter is not None:
        queues.drafter.launched(schedule)


def accept(
    drafter: Drafter | None, drafts: Drafts, chosen: "Tensor", moved: list[Request], rows: list[int]
) -> None:
    """Give what was right. Who got a token is in `moved` again, once for each further one, and the
    row of that in `rows`: rows behind guesses follow those of `first` requests.

    Args:
        chosen: a token for each row of the step, on the host.
    """
    if drafter is not None and drafts:
        first = len(chosen) - len(drafts.owners)
        for request, number in drafter.take(drafts, chosen[first:].tolist()):
            moved.append(request)
            rows.append(first + number)
