"""How long a step may take, so that nobody waits for somebody else's prompt.

A token budget bounds the tokens of a step. What they cost depends on the machine and on how much
they attend to, so a step's time is predicted from its work,

    seconds = base + a · decodes + b · prompt tokens + c · attended keys (+ d with prompts),

fitted to the steps that were measured. A prompt gets as many tokens as fit into the bound beside
those who wait for their next one; with nobody who waits there is no bound.

Invariant: a step that has prompts to compute computes some of the first one; prompts are served in
their order; decodes are never held back. Only how prompts are cut depends on the clock.
Built in notebooks/08_v1_scheduler.ipynb.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.request import Request

if TYPE_CHECKING:
    from plamo_ref.engine.scheduling.scheduler import Schedule

KEPT = 64  # steps that are remembered, of those with prompts and of the others
FIRST_PIECES = 4  # least pieces in the first step with a prompt: nothing is known of it
GROWTH = 2  # as many prompt tokens as the most that were measured, at most
ENOUGH = 16  # steps with prompts, of which some of the time may be for having any
MARGIN = 1.03  # of a prediction: it was made from what has been
SPREAD, MOST_SPREAD = 0.9, 1.5  # so many of the steps with prompts are not to exceed a prediction


@dataclass(frozen=True)
class StepWork:
    """What a step computes."""

    decodes: int = 0
    tokens: int = 0  # of prompts
    keys: int = 0  # that all of them attend to, in one layer

    @property
    def features(self) -> tuple[float, ...]:
        with_prompts = float(self.tokens > 0)
        return 1.0, float(self.decodes), float(self.tokens), float(self.keys), with_prompts


class StepTime(Protocol):
    """Knows how long a step takes."""

    def add(self, work: StepWork, seconds: float) -> None:
        """A step was measured."""
        ...

    def predict(self, work: StepWork) -> float:
        """Seconds; infinity for what nothing is known of."""
        ...


class FittedTime:
    """The formula above, with the least squares of relative errors, no factor below 0."""

    def __init__(self) -> None:
        self._plain, self._with_prompts = (deque[tuple[float, ...]](maxlen=KEPT) for _ in "ab")
        self._factors: np.ndarray | None = None  # of the features; None: to be fitted anew

    def add(self, work: StepWork, seconds: float) -> None:
        if seconds > 0:
            kept = self._with_prompts if work.tokens else self._plain
            kept.append((*work.features, seconds))
            self._factors = None

    def predict(self, work: StepWork) -> float:
        most = max((row[2] for row in self._with_prompts), default=0.0)
        if work.tokens > GROWTH * most:
            return float("inf")
        if self._factors is None:
            rows = np.array([*self._with_prompts, *self._plain])
            self._factors = _fitted(rows[:, :-1] / rows[:, -1:], len(self._with_prompts))
        return float(self._factors @ work.features)


def _fitted(features: np.ndarray, with_prompts: int) -> np.ndarray:
    """Factors ≥ 0 that bring each row, features per measured second, near 1; made larger so that
    most of the first `with_prompts` rows are not above it."""
    scale = features.max(axis=0)
    if with_prompts < ENOUGH:  # too few to tell what is for each token: all of it, then
        scale[-1] = 0
    used = np.flatnonzero(scale)
    found = np.zeros(0)
    while len(used):
        found = np.linalg.lstsq(features[:, used] / scale[used], np.ones(len(features)))[0]
        if (found >= 0).all():
            break
        used = used[found >= 0]
    factors = np.zeros(len(scale))
    factors[used] = found[: len(used)] / scale[used]
    ratios = 1 / np.maximum(features[:with_prompts] @ factors, 1 / MOST_SPREAD)
    return factors * max(1.0, float(np.quantile(ratios, SPREAD)))


class Pace:
    """Measures steps, and says how much of a prompt the next one has time for.

    Args:
        seconds: that a step may take.
        least: prompt tokens that it computes in any case.
        window: the widest of the model's windows; None: some layer has none.
    """

    def __init__(self, seconds: float, least: int, window: int | None) -> None:
        self.seconds, self.least, self.window = seconds, least, window
        self.times: StepTime = FittedTime()
        self.clock: Callable[[], float] = time.perf_counter
        self._launched: deque[tuple[StepWork, float]] = deque()
        self._landed = 0.0

    @classmethod
    def of(cls, config: EngineConfig, cache: HybridCache) -> "Pace | None":
        """None: no bound is wanted."""
        if config.max_step_time_ms is None:
            return None
        windows = [group.window for group in cache.groups.values()]
        widest = None if None in windows else max(w for w in windows if w is not None)
        return cls(config.max_step_time_ms / 1000, config.block_size, widest)

    def share(self, running: Iterable[Request]) -> "Share":
        """Of the next step."""
        waiting = [r.num_computed_tokens for r in running if r.can_run and r.is_decoding]
        keys = sum(self.attended(computed, 1) for computed in waiting)
        return Share(self, StepWork(len(waiting), 0, keys))

    def attended(self, computed: int, tokens: int) -> int:
        """Keys that so many tokens see behind so many computed ones, themselves included."""
        most = computed + tokens if self.window is None else self.window + 1
        growing = min(max(most - computed, 0), tokens)  # those that see everything before them
        return growing * computed + growing * (growing + 1) // 2 + (tokens - growing) * most

    def launched(self, schedule: "Schedule") -> None:
        """A step begins; `num_computed_tokens` of its requests are still those before it."""
        drafts = schedule.drafts
        counts = [
            (r.num_computed_tokens, tokens + len(drafts.guesses(r)))
            for r, tokens in schedule.tokens.items()
        ]
        decodes = sum(tokens == 1 for _, tokens in counts)
        keys = sum(self.attended(computed, tokens) for computed, tokens in counts)
        work = StepWork(decodes, sum(tokens for _, tokens in counts) - decodes, keys)
        self._launched.append((work, self.clock()))

    def landed(self) -> None:
        """The oldest step that was launched is over. It had the device since then, or since the one
        before it was over."""
        work, begun = self._launched.popleft()
        now = self.clock()
        self.times.add(work, now - max(begun, self._landed))
        self._landed = now

    def forget(self) -> None:
        """What was launched will not land."""
        self._launched.clear()


class Share:
    """What is left of one step's time, while the step is decided."""

    def __init__(self, pace: Pace, work: StepWork) -> None:
        self._pace, self._work = pace, work
        self._is_bound, self._is_full = work.decodes > 0, False

    def __call__(self, request: Request, left: int, budget: int) -> int:
        """How many of the `left` tokens of a request, and of the budget, the step has time for."""
        wanted = min(left, budget)
        if not self._is_bound or request.is_decoding:
            return wanted
        if self._is_full:
            return 0
        computed, least = request.num_tokens - left, self._pace.least
        first = min(wanted, least) if self._work.tokens == 0 else 0
        low, high = 0, -(-wanted // least)  # pieces: the most that are in time lie between
        while low < high:
            middle = (low + high + 1) // 2
            tokens = min(middle * least, wanted)
            low, high = (middle, high) if self._is_in_time(computed, tokens) else (low, middle - 1)
        granted = max(first, min(low * least, wanted))
        self._is_full = granted < wanted
        self._work = self._with(computed, granted)
        return granted

    def _is_in_time(self, computed: int, tokens: int) -> bool:
        work, pace = self._with(computed, tokens), self._pace
        seconds = pace.times.predict(work)
        is_first = work.tokens <= FIRST_PIECES * pace.least and seconds == float("inf")
        return is_first or seconds * MARGIN <= pace.seconds

    def _with(self, computed: int, tokens: int) -> StepWork:
        more = self._work.keys + self._pace.attended(computed, tokens)
        return replace(self._work, tokens=self._work.tokens + tokens, keys=more)


def all_in_time(request: Request, left: int, budget: int) -> int:
    """A step's time is not bounded."""
    return min(left, budget)
