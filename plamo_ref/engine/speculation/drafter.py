"""Drafts: tokens that a request will probably get, computed before it has them, and checked.

    positions   … n-2  n-1 | n  n+1  n+2        known tokens | a draft of three
    rows             t_n   t_n+1 …              chosen: of the last known token, and of each guess

A step computes the tokens that a request lacks and a draft behind them, as a piece of a prompt. Of
each of these rows a token is chosen, with the random number that this output has in any case. As
long as the guess was the token, the next row is a real one; the first token that was not guessed is
real too. So a text is what it would be without drafts, whether it is greedy or drawn.

The state of a Mamba layer cannot go back, so it never goes over a draft. The step leaves it behind
the last known token, as a photograph in a second slot, which is the request's from then on; the one
in which the guesses were computed is nobody's again. Keys of guesses lie behind the known ones and
are written over. So nothing is ever undone.

What a draft may cost others is bounded. It takes the memory that is left when a step is decided. It
is drawn while a step has so few tokens that reading the weights takes longer. A step with drafts
has to land before the next is decided; with overlap that takes as much of a step from everybody as
`WAIT` says, and has to be worth it.

Invariant: between two steps a request has one slot, and `num_computed_tokens` counts known tokens
alone: a draft is nowhere but in the step that computes it.
Built in notebooks/16_sampling_and_guided_decoding.ipynb.
"""

from collections.abc import Callable, Sequence
from heapq import nlargest
from typing import Protocol
from weakref import WeakKeyDictionary

from plamo_ref.engine.config import MOST_DRAFTS, EngineConfig
from plamo_ref.engine.drafts import Draft, Drafts
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Schedule
from plamo_ref.engine.speculation.lookup import Lookup
from plamo_ref.intake.speculation import NgramSettings

MOST_TOKENS = 256  # of a step with drafts: with more, computing takes longer than reading weights
WAIT = 0.1  # of a step, for everybody in it, that a step which has to land first may cost


class Guesses(Protocol):
    """Of one request: see lookup.py."""

    def read(self) -> None: ...
    @property
    def most(self) -> int: ...
    def gain(self, count: int) -> float: ...
    def guess(self, count: int) -> list[int]: ...


class Drafter:
    """Draws drafts, and takes of them what was right.

    Args:
        engine: with a `speculative_config`.
        vocab_size: what is chosen is below, if it is a token.
    """

    def __init__(self, engine: EngineConfig, cache: HybridCache, vocab_size: int) -> None:
        self.settings = NgramSettings.of(engine.speculative_config or {})
        self.cache, self._vocab_size = cache, vocab_size
        self._most_tokens = min(engine.step_tokens, MOST_TOKENS)
        sizes = self.settings.prompt_lookup_min, self.settings.prompt_lookup_max
        self.new_lookup: Callable[[Request], Guesses] = lambda request: Lookup(request, *sizes)
        self._lookups: WeakKeyDictionary[Request, Guesses] = WeakKeyDictionary()
        self.num_drafts = self.num_draft_tokens = self.num_accepted_tokens = 0

    @property
    def counts(self) -> tuple[int, int, int]:
        """Drafts, their tokens, and those of them that were right."""
        return self.num_drafts, self.num_draft_tokens, self.num_accepted_tokens

    # --- before a step --------------------------------------------------------------------------

    def wants(self, requests: Sequence[Request]) -> bool:
        """Whether the tokens of a step that is under way should be read before the next one is
        decided, because they will probably be the first of drafts."""
        gain = 0.0
        for request in requests:
            if request.is_plain and request.output_ids and request.status == "running":
                gain += self._gain(request, self._count(request, 1))
        return gain > WAIT * len(requests)

    def draft(self, schedule: Schedule) -> None:
        """Add drafts to a step that is decided, as far as there is room for them."""
        room = self._most_tokens - schedule.num_tokens
        counts = {
            request: count
            for request, new in schedule.tokens.items()
            if room > 0 and self._is_ready(request, new) and (count := self._count(request))
        }
        gains = {request: self._gain(request, count) for request, count in counts.items()}
        if sum(gains.values()) <= WAIT * len(schedule.tokens):
            return
        chosen = nlargest(MOST_DRAFTS, counts, gains.__getitem__)
        each = max(1, room // len(chosen))
        for request in chosen:
            room -= self._add(request, min(counts[request], each, room), schedule)

    def _is_ready(self, request: Request, new: int) -> bool:
        """Whether a draft can follow on what a step computes of a request."""
        return (
            request.is_plain
            and new <= self.settings.most_new
            and not request.num_unread_tokens
            and bool(request.output_ids)
            and request.num_computed_tokens + new == request.num_tokens
        )

    def _count(self, request: Request, unread: int = 0) -> int:
        """How many guesses it is worth to check, behind its next token, or behind so many more."""
        lookup = self._lookups.get(request)
        if lookup is None:
            lookup = self.new_lookup(request)
            self._lookups[request] = lookup
            request.most_new = self.settings.most_new
        lookup.read()
        left = request.max_output_tokens - len(request.output_ids) - unread - 1
        return max(0, min(lookup.most, self.settings.num_speculative_tokens, left))

    def _gain(self, request: Request, count: int) -> float:
        return self._lookups[request].gain(count) if count else 0.0

    def _add(self, request: Request, count: int, schedule: Schedule) -> int:
        """A draft of so many tokens, or of fewer where memory is short. Returns how many."""
        cache, slots = self.cache, self.cache.slots
        if count < 1 or (slots is not None and not slots.num_available):
            return 0
        slot = cache.take_slot()
        known, name = schedule.tokens[request], request.request_id
        count = cache.fit(name, request.num_computed_tokens, known + count) - known
        if count < 1:
            if slots is not None and slot is not None:
                slots.give_back([slot])
            return 0
        cache.allocate(name, request.num_computed_tokens, known + count)
        schedule.drafts[request] = Draft(tuple(self._lookups[request].guess(count)), slot)
        request.settled = None  # it lacks more than its newest token
        return count

    # --- behind it ------------------------------------------------------------------------------

    def launched(self, schedule: Schedule) -> None:
        """The step is on its way: the second slots become the first, which are free again."""
        cache = self.cache
        for request, draft in schedule.drafts.items():
            holding = cache.holdings[request.request_id]
            if cache.slots is not None and holding.slot is not None and draft.slot is not None:
                passed, holding.slot = holding.slot, draft.slot
                cache.rows.slots[holding.row] = draft.slot
                cache.slots.give_back([passed])

    def take(self, drafts: Drafts, chosen: Sequence[int]) -> list[tuple[Request, int]]:
        """Give the requests, which have the token behind their last known one, those behind guesses
        that were right.

        Args:
            chosen: a token behind each guess, in their order.

        Returns:
            Of each token that was given: to whom, and its number in `chosen`.
        """
        given, row = list[tuple[Request, int]](), 0
        for request, draft in drafts.items():
            outputs, count = request.output_ids, len(draft.token_ids)
            if request.status == "finished":
                row += count
                continue
            for number, guess in enumerate(draft.token_ids, row):
                token = chosen[number]
                is_real = outputs[-1] == guess and guess not in request.stop_ids
                if not is_real or not 0 <= token < self._vocab_size:
                    break
                request.settled = None
                request.append(token)
                given.append((request, number))
            row += count
            self.num_drafts += 1
            self.num_draft_tokens += count
        self.num_accepted_tokens += len(given)
        return given
