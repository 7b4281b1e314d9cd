"""Several steps in flight, one in each stage: the core for a pipeline.

A round: the stages hand on what they have computed, the next step is told to all, and every stage
computes the step that has come to it. What the last one computes lands in the same round. With n
stages a request's token takes n rounds, so other requests fill the steps between: a step takes an
n-th of those that run.

    round      1   2   3   4   5
    stage 0    A   B   A   B   A
    stage 1        A   B   A   B      A's tokens land in rounds 2 and 4

Invariant: no request is in two steps that are under way: it rests (`Request.under_way`) until its
step has landed. Each stage sees all steps in their order, each behind the copies that belong before
it: what the books give to a later step, it finds as the earlier ones left it, and who is preempted
or aborted meanwhile disturbs nothing that is under way.
"""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from plamo_ref.engine.batching import BatchPlan, build_batch
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.core import GRAMMAR_SECONDS, EngineCore
from plamo_ref.engine.flight import Flight, Told, begun
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.request import Request
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.engine.settled import settle
from plamo_ref.parallel.driver import SharedRunner


@dataclass(frozen=True)
class Begun:
    """A step that the stages have been told of."""

    plan: BatchPlan
    record: StepRecord | None


class PipelinedCore(EngineCore):
    """All requests of one model whose layers are on several stages."""

    def __init__(self, runner: ModelRunner, plan: MemoryPlan, config: EngineConfig) -> None:
        super().__init__(runner, plan, config)
        assert isinstance(runner, SharedRunner)
        self._pipeline = runner
        self._stages = config.pipeline_parallel_size
        self._overlap = False  # what there is to overlap are stages
        self._under_way: deque[Begun | None] = deque([None] * self._stages)  # newest first

    @property
    def is_under_way(self) -> bool:
        """Whether some stage has something to compute."""
        return any(self._under_way)

    def recover(self) -> None:
        """As the core; what is under way comes to its end first, and counts for nothing."""
        if self._torn:
            self._pipeline.drain()
            self._under_way = deque([None] * self._stages)
            for request in self.requests.values():
                request.under_way = False
        super().recover()

    @property
    def is_stalled(self) -> bool:
        """Whether all there is to do waits for a grammar."""
        return not self.is_under_way and super().is_stalled

    def _advance(self) -> Told | None:
        seconds = GRAMMAR_SECONDS if self.is_stalled else 0
        undecided, self._undecided = self._undecided, []
        mended, self._mended = self._mended, False
        if self._decide(undecided, seconds) and not mended:
            return None
        first = self._begin()
        copies = self.cache.copies if first is not None else []
        plan = None if first is None else first.plan
        logits = self._pipeline.round(plan, copies)
        self._under_way.appendleft(first)
        self._under_way.pop()
        through = self._under_way[-1]
        if through is None or logits is None:
            return None
        self._under_way[-1] = None
        return self._complete(through, logits)

    def _begin(self) -> Begun | None:
        """Decide the next step and lay it out."""
        started = time.perf_counter()
        resting = self._let_rest()
        schedule = self.queues.with_photographs(self.scheduler.schedule())
        _set_under_way(resting, False)
        times = (started, time.perf_counter())
        if not schedule:
            return None
        plan = build_batch(schedule, self.cache, self.runner.place)
        self.queues.prefix.develop(schedule.photographs)
        record = begun(plan, schedule, self.cache, *times) if self.observers else None
        for request in plan.requests:
            request.num_computed_tokens += schedule.tokens[request]
        _set_under_way(plan.requests, True)
        return Begun(plan, record)

    def _let_rest(self) -> list[Request]:
        """Leave some of those that could run to the next steps: each gets its share."""
        running = self.queues.running
        share = -(-len(running) // self._stages)
        resting = [request for request in running if request.can_run][share:]
        _set_under_way(resting, True)
        return resting

    def _complete(self, step: Begun, logits: Tensor) -> Told | None:
        """Choose and land the tokens of a step that is through."""
        _set_under_way(step.plan.requests, False)
        plan, logits = _of_those_who_stayed(step.plan, logits)
        tokens = self._choose(plan, logits, None)
        settle(plan.sampled, self.cache)
        return self._land(Flight.of(plan, logits, tokens, step.record))


def _set_under_way(requests: Iterable[Request], value: bool) -> None:
    for request in requests:
        request.under_way = value


def _of_those_who_stayed(plan: BatchPlan, logits: Tensor) -> tuple[BatchPlan, Tensor]:
    """The plan and the logits without the rows of those who have ended since it began: their
    grammars and tables are gone."""
    if all(request.status != "finished" for request in plan.requests):
        return plan, logits
    sampled = [row for row, request in enumerate(plan.sampled) if request.status != "finished"]
    rows, row = list(sampled), len(plan.sampled)
    for request, places in plan.scored:
        rows += range(row, row + len(places)) if request.status != "finished" else ()
        row += len(places)
    kept = replace(
        plan,
        sampled=tuple(plan.sampled[row] for row in sampled),
        scored=tuple(each for each in plan.scored if each[0].status != "finished"),
    )
    return kept, logits[rows]
