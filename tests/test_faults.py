"""Faults planted on purpose, each caught by the check that is meant to catch it.

Invariant tested: the same traces pass without the fault, before and after.
"""

import random
from functools import cache

import pytest
from engines import CONFIGS, pair

from plamo_ref.engine.cache import IntegrityError
from plamo_ref.engine.pool import PoolError
from plamo_ref.errors import PlamoRefError
from plamo_ref.teaching.audits import ScheduleError
from plamo_ref.teaching.faults import FAULTS, fault
from plamo_ref.teaching.lab import Trace, draw_trace
from plamo_ref.teaching.law import LawError, run_trace
from plamo_ref.teaching.planting import Fault

HYBRID = "mamba, sliding and full"
TRACES = 30
ERRORS = {
    "audit": (IntegrityError, PoolError),
    "schedule": (ScheduleError,),
    "law": (LawError,),
}


@cache
def trace(seed: int) -> Trace:
    return draw_trace(random.Random(seed).randint, CONFIGS[HYBRID])


def first_failure(*errors: type[Exception]) -> int | None:
    """The first trace that ends in one of `errors`."""
    for seed in range(TRACES):
        try:
            run_trace(trace(seed), pair(HYBRID))
        except errors:
            return seed
        except PlamoRefError:
            pass  # another check was quicker
    return None


def test_without_a_fault_all_traces_pass():
    for seed in range(TRACES):
        run_trace(trace(seed), pair(HYBRID))


@pytest.mark.parametrize("planted", FAULTS, ids=lambda each: each.name)
def test_a_fault_is_caught(planted: Fault):
    pair(HYBRID)  # made while everything is whole
    with planted.planted():
        seed = first_failure(*ERRORS[planted.caught_by])
    assert seed is not None, f"{planted.caught_by}: {TRACES} traces did not notice"
    run_trace(trace(seed), pair(HYBRID))  # and the engine is whole again


def test_each_fault_has_a_name_and_a_sentence():
    assert len({each.name for each in FAULTS}) == len(FAULTS) >= 30
    assert all(each.story.endswith(".") and each.story[0].isupper() for each in FAULTS)
    assert fault("block leaked").caught_by == "audit"
