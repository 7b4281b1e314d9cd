"""Scenarios in which a step has little time, so that prompts are cut as a clock has it.

Invariant: the clock is a row of drawn numbers, the same every time, and has nothing to do with what
the steps compute: whatever it tells, only the cuts may follow from it.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.core import EngineCore
from plamo_ref.proof.lab import Pick, Scenario, draw_scenario
from plamo_ref.proof.sharing import draw_sharing_scenario

LONGEST_TICK_MS = 10


def draw_hurried_scenario(pick: Pick, config: Plamo2Config) -> Scenario:
    """Another scenario from whole numbers, with a bound on the time of a step."""
    drawn = (draw_scenario, draw_sharing_scenario)[pick(0, 1)](pick, config)
    milliseconds = pick(1, 4 * LONGEST_TICK_MS) / 2
    engine = replace(drawn.engine, scheduler="v1", chunk_size=None, max_step_time_ms=milliseconds)
    return replace(drawn, engine=engine)


def let_hurry(core: EngineCore, seed: int) -> None:
    """Give a core that bounds the time of its steps such a clock."""
    if core.queues.pace is not None:
        core.queues.pace.clock = drawn_clock(seed)


def drawn_clock(seed: int) -> Callable[[], float]:
    """Seconds: each time it is asked, some milliseconds have gone by."""
    ticks, now = random.Random(seed), [0.0]

    def ask() -> float:
        now[0] += ticks.random() * LONGEST_TICK_MS / 1000
        return now[0]

    return ask
