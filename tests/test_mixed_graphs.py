"""Steps with prompts in fixed buffers: padding changes nothing that anybody owns.

Invariant tested: with room left over, and after other batches, a batch gives the hidden states it
gives alone and leaves the same in every block and slot but the null ones.
"""

from collections.abc import Iterator

import pytest
import torch
from engines import CONFIGS, new_core
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo_ref.batch import ForwardBatch
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.mixed_graphs import DECODES, PROMPTS, TOKENS, MixedBuffers, Room
from plamo_ref.sampling import SamplingParams

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


def steps(core: EngineCore, lengths: list[int], wait: int) -> Iterator[ForwardBatch]:
    """The batches with prompts of a run whose second half arrives `wait` steps later. Each is
    yielded before it is computed."""
    pending = [list(range(1, 1 + length)) for length in lengths]
    early = (len(pending) + 1) // 2
    for prompt in pending[:early]:
        core.add(prompt, GREEDY)
    run, seen = core.runner.run, []
    core.runner.run = lambda batch: (seen.append(batch), run(batch))[1]  # type: ignore[method-assign]
    number = 0
    while core.has_work or pending[early:]:
        if number == wait or not core.has_work:
            for prompt in pending[early:]:
                core.add(prompt, GREEDY)
            del pending[early:]
        before = saved(core)
        core.step()
        number += 1
        if seen and seen[-1].has_prefills:
            after = saved(core)
            restore(core, before)
            yield seen[-1]
            restore(core, after)


def saved(core: EngineCore) -> list[dict[str, torch.Tensor]]:
    return [{k: v.clone() for k, v in vars(cache).items()} for cache in core.runner.caches]


def restore(core: EngineCore, contents: list[dict[str, torch.Tensor]]) -> None:
    for cache, content in zip(core.runner.caches, contents, strict=True):
        for name, value in content.items():
            getattr(cache, name).copy_(value)


@pytest.fixture(scope="module", autouse=True)
def _new_memory_is_nan() -> Iterator[None]:
    """So that what no kernel writes is seen wherever it gets to."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@torch.inference_mode()
def computed(core: EngineCore, batch: ForwardBatch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Hidden states, and all places but the null ones; the caches stay as they were."""
    before = saved(core)
    hidden = core.runner.model.forward(batch, core.runner.caches)
    after = [v[1:] for cache in saved(core) for v in cache.values()]
    restore(core, before)
    return hidden, after


@pytest.mark.parametrize("name", list(CONFIGS))
@settings(max_examples=4)
@given(
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=5),
    wait=st.integers(0, 4),
    room=st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 9)),
)
def test_room_left_over_changes_nothing(name, lengths, wait, room):
    core = new_core(CONFIGS[name])
    widths = dict.fromkeys(core.cache.groups, 60)
    more_decodes, more_prompts, more_tokens = room
    buffers = MixedBuffers(Room(4 + more_decodes, 4 + more_prompts, 16 + more_tokens), widths, CPU)
    count = 0
    for batch in steps(core, lengths, wait):
        count += 1
        plain, places = computed(core, batch)
        rows = buffers.load(batch)
        padded, padded_places = computed(core, buffers.batch)
        torch.testing.assert_close(padded[rows], plain[batch.logits_rows], rtol=0, atol=1e-12)
        for mine, other in zip(padded_places, places, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-12, equal_nan=True)
    assert count


def test_a_batch_leaves_nothing_for_the_next_in_the_buffers():
    core = new_core()
    used, room = None, Room(4, 4, 16)
    widths = dict.fromkeys(core.cache.groups, 60)
    for batch in steps(core, [5, 19, 3, 11], wait=2):
        used, fresh = used or MixedBuffers(room, widths, CPU), MixedBuffers(room, widths, CPU)
        assert torch.equal(used.load(batch), fresh.load(batch))
        for name in ("token_ids", "positions", "query_start_loc", "seq_lens", "has_past"):
            assert torch.equal(getattr(used.batch, name), getattr(fresh.batch, name)), name
        assert torch.equal(used.batch.state_slots, fresh.batch.state_slots)
        for kind, group in used.batch.groups.items():
            for name, value in vars(group).items():
                assert torch.equal(value, getattr(fresh.batch.groups[kind], name)), name


def test_the_room_of_a_batch_is_the_least_that_holds_it():
    core = new_core()
    for batch in steps(core, [5, 9, 3], wait=2):
        room = Room.of(batch, most_tokens=100)
        tokens = batch.token_ids.shape[0] - batch.num_decodes
        needed = (batch.num_decodes, batch.num_requests - batch.num_decodes, tokens)
        ladders = (DECODES, PROMPTS, TOKENS)
        expected = [min(n for n in ladder if n >= k) for ladder, k in zip(ladders, needed)]  # noqa: B905
        assert room == Room(*expected)
        assert Room.of(batch, most_tokens=tokens - 1) is None


def test_a_batch_beyond_the_ladder_has_no_room():
    lengths = [1] * (PROMPTS[-1] + 1)
    core = new_core(seats=len(lengths))
    (batch,) = list(steps(core, lengths + lengths, wait=99))[:1]
    assert batch.num_requests > PROMPTS[-1]
    assert Room.of(batch, most_tokens=100) is None


def test_a_table_that_is_too_wide_does_not_fit():
    core = new_core()
    batch = next(steps(core, [9], wait=0))
    room = Room.of(batch, most_tokens=100)
    assert MixedBuffers(room, dict.fromkeys(core.cache.groups, 60), CPU).fit(batch)
    assert not MixedBuffers(room, dict.fromkeys(core.cache.groups, 1), CPU).fit(batch)
