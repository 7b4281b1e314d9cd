"""One token budget for everything: a decode is a request with one token left to compute.

Invariant: no step computes more than `max_num_batched_tokens` tokens; running requests come before
waiting ones; a prompt is cut where the budget ends, or the step's time, and goes on in the next.
Built in notebooks/08_v1_scheduler.ipynb.
"""

from plamo_ref.engine.scheduling.scheduler import Queues, Schedule
from plamo_ref.engine.settled import who_goes_on


class V1Scheduler:
    """Running requests first, oldest first; then admit while budget, seats and memory last."""

    def __init__(self, queues: Queues) -> None:
        self.queues = queues

    def schedule(self) -> Schedule:
        queues, schedule, budget = self.queues, Schedule(), self.queues.budget
        in_time = queues.in_time()

        running = list(queues.running)
        for request, goes_on in zip(running, who_goes_on(running), strict=True):
            if not budget:
                break
            if goes_on and request.settled is not None:  # it is None once somebody needs the memory
                schedule.tokens[request] = 1
                budget -= 1
            elif request.can_run:  # not preempted a moment ago, not waiting for its grammar
                wanted = in_time(request, request.num_uncomputed_tokens, budget)
                budget -= queues.grant(request, wanted, schedule) if wanted else 0

        while budget and (first := queues.next_waiting) and not schedule.preempted:
            wanted = in_time(first, queues.num_uncomputed(first), budget)
            granted = queues.admit(first, wanted, schedule) if wanted else 0
            if not granted:
                break
            budget -= granted

        return schedule
