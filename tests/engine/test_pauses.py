"""What lives as long as the engine is not looked at again by the collector.

Invariant tested: what was there is set aside, what comes later is collected, and the end undoes it;
a step makes nothing that only the collector would find.
"""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace

import pytest
from engines import new_core

from plamo_ref import LLM
from plamo_ref.engine.pauses import collect_all, set_aside
from plamo_ref.sampling import SamplingParams


class Circle:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_there_is_set_aside_and_what_comes_later_is_collected():
    before = len(gc.get_objects())
    set_aside()
    assert gc.get_freeze_count() > before / 2
    assert len(gc.get_objects()) < before / 10
    seen = weakref.ref(Circle())
    assert seen() is not None
    gc.collect()
    assert seen() is None


def test_garbage_is_collected_before_and_not_set_aside():
    seen = weakref.ref(Circle())
    set_aside()
    assert seen() is None


@pytest.mark.parametrize("thorough", [True, False])
def test_what_was_dropped_after_a_long_life_is_looked_for_unless_time_is_short(thorough):
    circle = Circle()
    seen = weakref.ref(circle)
    gc.collect()  # by which it is old
    del circle
    set_aside(thorough)
    assert (seen() is None) == thorough


def test_the_end_undoes_it():
    circle = Circle()
    seen = weakref.ref(circle)
    set_aside()
    del circle
    gc.collect()
    assert seen() is not None  # it was alive at the time
    collect_all()
    assert gc.get_freeze_count() == 0
    assert seen() is None


SMALL = {"device": "cpu", "memory_bytes": 40_000_000}
LONG = SamplingParams(max_tokens=200, seed=1, ignore_eos=True)


def test_what_an_llm_loads_is_set_aside_until_it_is_closed():
    with LLM("tiny", **SMALL) as llm:
        assert gc.get_freeze_count() > 50_000
        llm.generate(["a", "b"], SamplingParams(max_tokens=3), use_tqdm=False)
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("record", [False, True])
def test_an_llm_that_is_dropped_leaves_its_model_to_the_collector(record):
    """Without `close`, as ever: nobody has to know that anything was set aside."""
    llm = LLM("tiny", record=record, **SMALL)
    llm.generate("a", SamplingParams(max_tokens=3), use_tqdm=False)
    assert len(llm.records) == (3 if record else 0)
    model = weakref.ref(llm.core.runner.model)
    del llm
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert model() is None


@pytest.mark.parametrize("overlap", [False, True])
def test_tokens_leave_no_garbage_for_the_collector(overlap):
    """What a step makes goes when nobody names it any more: nothing waits for a collection."""
    core = new_core(overlap=overlap)
    for prompt in ([1, 2, 3], [4] * 9):
        core.add(prompt, SamplingParams(max_tokens=200, seed=1, ignore_eos=True))
    for _ in range(20):
        core.step()
    gc.collect()
    gc.disable()
    try:
        for _ in range(150):
            core.step()
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert core.has_work


@pytest.mark.parametrize("stop", [(), "never there"])
def test_tokens_cause_no_collections(stop):
    """A collection comes when some hundred objects more were made than went."""
    with LLM("tiny", **SMALL) as llm:
        params = replace(LONG, stop=stop)
        llm.generate(["a", "b"], replace(params, max_tokens=20), use_tqdm=False)
        seen, steps = [], llm.core.num_steps
        gc.callbacks.append(lambda phase, about: seen.append((phase, about["generation"])))
        try:
            llm.generate(["a", "b"] * 5, params, use_tqdm=False)
        finally:
            gc.callbacks.pop()
        assert llm.core.num_steps - steps >= 200
        assert len(seen) <= 2, seen  # one has a beginning and an end
