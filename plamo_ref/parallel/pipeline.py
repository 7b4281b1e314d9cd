"""Several steps in flight, one in each stage: the core for a pipeline.

A round: the stages hand on what they have computed, the next step is told to all, and every stage
computes the step that has come to it. With n
stages a request's token takes n rounds, so other requests fill the steps between: a step takes an
n-th of those that run.

    round      1   2   3   4   5
    stage 0    A   B   A   B   A
    stage 1        A   B   A   B      A's tokens are chosen in rounds 2 and 4

Overlapped, a round is given to the ranks before the tokens of the one before it are read: while
they compute round 3, the host reads what round 2 has chosen and lays out round 4. A's second step
is laid out without the tokens that its first one chooses; on the last stage's device, where they
are chosen, they are written into the step's vector, of which all stages are told. Without overlap
a round lands before the next one is laid out, and all stages wait for the host meanwhile.

Invariant: no request is in two steps that are under way: it rests (`Request.under_way`) until its
step has landed. Each stage sees all steps in their order, each behind the copies that belong before
it: what the books give to a later step, it finds as the earlier ones left it, and who is preempted
or aborted meanwhile disturbs nothing that is under way.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch import Tensor

from plamo_ref.engine.batching import BatchPlan, Unread, build_batch
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.core import GRAMMAR_SECONDS, EngineCore
from plamo_ref.engine.endings import is_leaving, needs_host
from plamo_ref.engine.flight import Flight, Told
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.record import StepRecord, begun
from plamo_ref.engine.request import Request
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.engine.settled import count, settle
from plamo_ref.parallel.driver import SharedRunner

LEAST_TOKENS = 512  # of a step's share: with less, reading the weights takes longer than computing


@dataclass(frozen=True)
class Begun:
    """A step that the stages have been told of."""

    plan: BatchPlan
    num_tokens: int
    record: StepRecord | None


@dataclass(frozen=True)
class Arrived(Begun):
    """One that has come to the end, as far as it concerns those who have not ended meanwhile."""

    rows: list[int] | slice  # of its logits

    @property
    def needs_host(self) -> bool:
        """Whether it must land before the next round is given. (For a penalty it need not: that
        looks at earlier tokens than the step chooses, and they are known.)"""
        return bool(self.plan.scored) or any(needs_host(r, True) for r in self.plan.sampled)


class PipelinedCore(EngineCore):
    """All requests of one model whose layers are on several stages."""

    def __init__(self, runner: ModelRunner, plan: MemoryPlan, config: EngineConfig) -> None:
        super().__init__(runner, plan, config)
        assert isinstance(runner, SharedRunner)
        self._pipeline = runner
        self._stages = config.pipeline_parallel_size
        # Newest first. The last one comes to the end in the round that was given last.
        self._under_way: deque[Begun | None] = deque([None] * self._stages)
        self._logits: Callable[[], Tensor | None] | None = None  # waits for that round

    @property
    def is_under_way(self) -> bool:
        """Whether some step has begun and has not landed."""
        return any(self._under_way)

    def recover(self) -> None:
        """As the core; what is under way comes to its end first, and counts for nothing."""
        if self._torn:
            self._pipeline.drain()
            self._under_way, self._logits = deque([None] * self._stages), None
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
        told, arrived = None, self._arrive()  # without overlap nothing does here, but below
        if arrived is not None and arrived.needs_host:
            told, arrived = self._land(self._fly(arrived)), None
        first = self._begin(arrived)
        flight = None if arrived is None else self._fly(arrived, first)
        self._give(first)
        if not self._overlap and (arrived := self._arrive()) is not None:
            flight = self._fly(arrived)
        return told if flight is None else self._land(flight)

    # --- a step's way --------------------------------------------------------------------------

    def _begin(self, before: Arrived | None) -> Begun | None:
        """Decide the next step and lay it out; the tokens of the step `before` are not there yet,
        and are left out."""
        started = time.perf_counter()
        resting = self._let_rest()
        schedule = self.queues.with_photographs(self.scheduler.schedule())
        _set_under_way(resting, False)
        times = (started, time.perf_counter())
        if not schedule:
            return None
        unread = None
        if before is not None:
            sampled = before.plan.sampled
            nothing = torch.zeros(len(sampled), dtype=torch.int64, device=self.runner.device)
            unread = Unread(nothing, sampled)
        plan = build_batch(schedule, self.cache, self.runner.place, unread)
        self.queues.prefix.develop(schedule.photographs)
        told = (plan.requests, plan.sampled, schedule, self.cache, *times)
        record = begun(*told) if self.observers else None
        count(schedule.tokens)
        _set_under_way(plan.requests, True)
        return Begun(plan, schedule.num_tokens, record)

    def _let_rest(self) -> list[Request]:
        """Leave some of those that could run to the next steps: each gets its share, of requests
        and of tokens. A round takes as long as its longest step."""
        running = self.queues.running
        able = [request for request in running if request.can_run]
        self.queues.budget = self._share_of_tokens(able)
        resting = able[-(-len(running) // self._stages) :]
        _set_under_way(resting, True)
        return resting

    def _share_of_tokens(self, able: Iterable[Request]) -> int:
        """Of all that could be computed now, and of what is under way."""
        most, seats = self.config.step_tokens, len(self.queues.running)
        coming = islice(self.queues.waiting, max(0, self.queues.max_num_seqs - seats))
        tokens = sum(step.num_tokens for step in self._under_way if step is not None)
        for request in chain(able, coming):
            tokens += request.num_uncomputed_tokens
            if tokens >= most * self._stages:
                return most
        return min(most, max(LEAST_TOKENS, -(-tokens // self._stages)))

    def _give(self, first: Begun | None) -> None:
        """Give the ranks a round, in which `first` comes into the first stage."""
        if first is None and not self.is_under_way:
            return
        plan, copies = (None, []) if first is None else (first.plan, self.cache.copies)
        self._logits = self._pipeline.start_round(plan, copies)
        self._under_way.appendleft(first)
        self._under_way.pop()

    def _arrive(self) -> Arrived | None:
        """The step that the last round brings to its end: its requests have a token, unread."""
        step, self._under_way[-1] = self._under_way[-1], None
        if step is None:
            return None
        _set_under_way(step.plan.requests, False)
        arrived = _of_those_who_stayed(step)
        for request in filter(is_leaving, settle(arrived.plan.sampled, self.cache)):
            # Each stage works in order, so whoever gets its memory comes after it.
            self.queues.remove(request)
        return arrived

    def _fly(self, step: Arrived, next_one: Begun | None = None) -> Flight:
        """Choose a step's tokens, and write them into the next one that needs them."""
        assert self._logits is not None
        logits = self._logits()
        assert logits is not None
        logits = logits[step.rows]
        if self.observers and self._overlap:
            logits = logits.clone()  # a recorded step writes where the last one wrote
        tokens = self._choose(step.plan, logits, None)
        flight = Flight.of(step.plan, logits, tokens, step.record)
        if next_one is not None:
            fill_in(next_one.plan, flight.tokens)
        return flight


def fill_in(plan: BatchPlan, tokens: Tensor) -> None:
    """Write those tokens into a step that it was laid out without; the host has not read them."""
    batch, late = plan.batch, sum(request.num_unread_tokens > 0 for request in plan.sampled)
    if late:
        batch.token_ids[batch.late_rows[:late]] = tokens[batch.late_from[:late]]


def _set_under_way(requests: Iterable[Request], value: bool) -> None:
    for request in requests:
        request.under_way = value


def _of_those_who_stayed(step: Begun) -> Arrived:
    """A step without those who have ended since it began: their grammars and tables are gone."""
    plan = step.plan
    if all(request.status != "finished" for request in plan.requests):
        return Arrived(plan, step.num_tokens, step.record, slice(None))
    sampled = [row for row, request in enumerate(plan.sampled) if request.status != "finished"]
    rows, row = list(sampled), len(plan.sampled)
    for request, places in plan.scored:
        rows += range(row, row + len(places)) if request.status != "finished" else ()
        row += len(places)
    kept = replace(
        plan,
        sampled=tuple(plan.sampled[row] for row in sampled),
        numbers=[plan.numbers[row] for row in sampled],
        scored=tuple(each for each in plan.scored if each[0].status != "finished"),
    )
    return Arrived(kept, step.num_tokens, step.record, rows)
