"""Prefill and decode in different steps, prefill first.

Invariant: a step holds only prefills or only decodes. Without `chunk_size` a prompt is computed in
one step (hence requests must fit the budget, see `EngineCore.add`); with it, in pieces of exactly
that size and a rest. Only where memory is too short for a piece, or where prefix caching wants to
keep the state, is it cut smaller.
Built in notebooks/07_continuous_batching.ipynb.
"""

from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Queues, Schedule
from plamo_ref.engine.settled import who_goes_on


class V0Scheduler:
    """Prefill whatever can be prefilled; only when there is nothing of it, decode."""

    def __init__(self, queues: Queues) -> None:
        self.queues = queues

    def schedule(self) -> Schedule:
        schedule = Schedule()
        self._prefill(schedule)
        if not schedule:
            self._decode(schedule)
        return schedule

    def _prefill(self, schedule: Schedule) -> None:
        queues = self.queues
        budget = queues.config.step_tokens
        for request in [r for r in queues.running if not r.is_decoding and r.can_run]:
            chunk = self._chunk(request)
            if chunk > budget:
                return
            if request.can_run:
                budget -= queues.grant(request, chunk, schedule)

        while (first := queues.next_waiting) and not schedule.preempted:
            chunk = self._chunk(first)
            if chunk > budget:
                return
            granted = queues.admit(first, chunk, schedule)
            if not granted:
                return
            budget -= granted

    def _decode(self, schedule: Schedule) -> None:
        queues = self.queues
        budget = queues.config.step_tokens
        able = [r for r in queues.running if r.is_decoding and r.can_run][:budget]
        for request, goes_on in zip(able, who_goes_on(able), strict=True):
            if goes_on and request.settled is not None:
                schedule.tokens[request] = 1
            elif request.can_run:
                queues.grant(request, request.num_uncomputed_tokens, schedule)

    def _chunk(self, request: Request) -> int:
        """Tokens of the request's next prefill step."""
        left = self.queues.num_uncomputed(request)
        return min(left, self.queues.config.chunk_size or left)
