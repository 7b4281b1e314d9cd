"""What both schedulers share: the queues, admission, preemption.

Invariant: `running` is in order of arrival and so is `waiting`, and nobody in `waiting` arrived
before anybody in `running` who is still computing its first tokens: first come, first served.
Only who rests (waits for its grammar, say) is passed over meanwhile. A preempted request loses its
memory, keeps its output, and waits at its place by arrival. What requests have computed may be kept
and found again (prefix.py); it is given up for any of them.
Built in notebooks/07_continuous_batching.ipynb.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.drafts import Drafter, Drafts
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.eviction import Photograph
from plamo_ref.engine.memory.holding import Holding
from plamo_ref.engine.memory.prefix import PrefixCache
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.pace import Pace, all_in_time
from plamo_ref.sampling import GuidedError


@dataclass
class Schedule:
    """The decision for one step."""

    tokens: dict[Request, int] = field(default_factory=dict)  # new tokens of each, in order
    admitted: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)
    # Of those admitted: tokens that were found, and why not more.
    found: dict[Request, tuple[int, str]] = field(default_factory=dict)
    photographs: list[Photograph] = field(default_factory=list)  # inside of these tokens
    drafts: Drafts = field(default_factory=Drafts)  # behind them

    @property
    def num_tokens(self) -> int:
        return sum(self.tokens.values())

    def __bool__(self) -> bool:
        return bool(self.tokens)


class Scheduler(Protocol):
    """A policy: who computes how many tokens in the next step."""

    queues: "Queues"

    def schedule(self) -> Schedule:
        """Decide the next step and allocate its memory. Empty if there is nothing to do."""
        ...


class Queues:
    """Waiting and running requests, and the moves between them."""

    def __init__(self, config: EngineConfig, cache: HybridCache, max_num_seqs: int) -> None:
        self.config, self.cache, self.max_num_seqs = config, cache, max_num_seqs
        self.prefix = PrefixCache(cache, bool(config.enable_prefix_caching))
        self.prefix.interval = config.photograph_interval
        self.budget = config.step_tokens  # of the next step; a pipeline shares it
        self.pace = Pace.of(config, cache)
        self.drafter: Drafter | None = None  # whoever builds the engine may bring one
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        self.waiting.append(request)
        self.prefix.enter(request)

    def clear(self) -> None:
        """Nobody waits, nobody runs, nobody holds memory."""
        self.waiting.clear()
        self.running.clear()
        self.prefix.clear()
        self.cache.clear()
        if self.pace is not None:
            self.pace.forget()

    def remove(self, request: Request) -> None:
        """Take a finished or aborted request out, wherever it is, and its memory from it."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        if request.finish_reason == "error":
            self.cache.release(request.request_id)
            if not isinstance(request.error, GuidedError):  # which says nothing of what is computed
                self.prefix.distrust(request)
        else:
            self.prefix.freeze(request)
        self.prefix.leave(request)

    @property
    def next_waiting(self) -> Request | None:
        """Whose turn it is to be admitted, if there is a seat, and if nobody is about to compute
        what it could begin with."""
        if len(self.running) >= self.max_num_seqs:
            return None
        first = next((r for r in self.waiting if not r.rests), None)
        return None if first is None or self.prefix.waits(first, self.running) else first

    def num_uncomputed(self, request: Request) -> int:
        """Tokens that a request has to compute, less what it will find when it is admitted."""
        found = self.prefix.find(request)[0] if request.status == "waiting" else 0
        return request.num_uncomputed_tokens - found

    def grant(self, request: Request, wanted: int, schedule: Schedule) -> int:
        """Allocate up to `wanted` tokens for a running request; preempt newer ones if need be.

        Returns the number of tokens; 0 if the request itself had to go.
        """
        if request.num_computed_tokens < len(request.prompt_ids):
            self.prefix.photograph(request)
        wanted = self._until_stop(request, request.num_computed_tokens, wanted)
        while not (tokens := self._fit(request, wanted)):
            newest = self.running[-1]
            self.preempt(newest, schedule)
            if newest is request:
                return 0
        self._give(request, tokens, schedule)
        return tokens

    def admit(self, request: Request, wanted: int, schedule: Schedule) -> int:
        """Let the next waiting request run with `wanted` tokens; 0 if it has to wait.

        All of `wanted` must fit, or the newcomer would soon be preempted again; only when nobody
        else runs does it start with what there is.
        """
        computed, found = self.prefix.find(request)
        source = None if found is None else self.prefix.use(found)
        computed = request.num_computed_tokens if found is None else computed
        wanted = self._until_stop(request, computed, wanted)
        tokens = self.cache.fit(request.request_id, computed, wanted, source)
        if not tokens or (tokens < wanted and self.running):
            return 0
        schedule.found[request] = computed, self.prefix.begin(request, computed)
        self.waiting.remove(request)
        insort(self.running, request, key=_arrival)
        request.status = "running"
        schedule.admitted.append(request)
        request.num_computed_tokens = computed
        self._give(request, tokens, schedule, source)
        return tokens

    def in_time(self) -> Callable[[Request, int, int], int]:
        """Asks the next step's time: see `Share`."""
        return all_in_time if self.pace is None else self.pace.share(self.running)

    def with_photographs(self, schedule: Schedule) -> Schedule:
        """A step that is decided takes photographs and computes drafts, in memory that is left."""
        for request, count in schedule.tokens.items():
            if count > 1 and self.config.photographs:
                end = request.num_computed_tokens + count
                self.prefix.expose(request, end, schedule.photographs)
        if self.drafter is not None and schedule:
            self.drafter.draft(schedule)
        if self.pace is not None and schedule:
            self.pace.launched(schedule)
        return schedule

    def landed(self) -> None:
        """A step is over."""
        if self.pace is not None:
            self.pace.landed()

    def preempt(self, request: Request, schedule: Schedule) -> None:
        """Recompute later: give the memory up, wait before all who came later."""
        self.running.remove(request)
        self.prefix.freeze(request)
        self.prefix.rest(request)
        request.reset()
        insort(self.waiting, request, key=_arrival)
        schedule.preempted.append(request)

    def _fit(self, request: Request, wanted: int) -> int:
        pools = self.cache.blocks.values()
        if wanted == 1 and self.cache.arena is None and all(p.num_available for p in pools):
            return 1  # which takes a block of each kind at the most
        return self.cache.fit(request.request_id, request.num_computed_tokens, wanted)

    def _until_stop(self, request: Request, computed: int, wanted: int) -> int:
        """Cut a chunk where the prefix cache wants to see what was computed, if it cannot see it
        from outside."""
        if self.config.photographs:
            return wanted
        stops = self.prefix.wanted(request, computed)[:1]
        return min([wanted, *(node.position - computed for node in stops)])

    def _give(
        self, request: Request, tokens: int, schedule: Schedule, source: Holding | None = None
    ) -> None:
        self.cache.allocate(request.request_id, request.num_computed_tokens, tokens, source)
        schedule.tokens[request] = tokens


def _arrival(request: Request) -> int:
    return request.arrival
