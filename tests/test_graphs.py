"""Decode batches in fixed buffers: padding changes nothing that anybody owns."""

import pytest
import torch
from engines import CONFIGS, new_core

from plamo_ref.engine.batching import build_batch
from plamo_ref.engine.graphs import DecodeBuffers, table_widths
from plamo_ref.sampling import SamplingParams


def decoding(name, requests=3):
    """A core whose requests all decode next, and the plan of its memory."""
    core = new_core(CONFIGS[name])
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    for i in range(requests):
        core.add(list(range(1, 4 + 2 * i)), params)
    while not all(request.is_decoding for request in core.requests.values()):
        core.step()
    return core


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_padded_batch_gives_the_same_logits_and_touches_no_live_place(name):
    core = decoding(name)
    plan = build_batch(core.scheduler.schedule(), core.cache, torch.device("cpu"))
    widths = dict.fromkeys(core.cache.groups, 60)
    buffers = DecodeBuffers(plan.batch.num_requests + 3, widths, torch.device("cpu"))
    buffers.load(plan.batch)
    assert buffers.fit(plan.batch)

    def computed(batch):
        """Logits, and the caches after the step; the caches are put back."""
        runner, saved = (
            core.runner,
            [{k: v.clone() for k, v in vars(cache).items()} for cache in core.runner.caches],
        )
        with torch.inference_mode():
            logits = runner.model.logits(runner.model.forward(batch, runner.caches))
        after = [{k: v[1:].clone() for k, v in vars(c).items()} for c in runner.caches]
        for cache, old in zip(runner.caches, saved, strict=True):
            for key, value in old.items():
                getattr(cache, key).copy_(value)
        return logits, after

    plain, plain_caches = computed(plan.batch)
    padded, padded_caches = computed(buffers.batch)
    torch.testing.assert_close(padded[: len(plain)], plain, rtol=0, atol=1e-12)
    for mine, other in zip(padded_caches, plain_caches, strict=True):
        for key, value in mine.items():  # all places but the null one
            torch.testing.assert_close(value, other[key], rtol=0, atol=1e-12, equal_nan=True)


def test_a_second_batch_leaves_nothing_of_the_first_in_the_buffers():
    core = decoding(next(iter(CONFIGS)))
    plan = build_batch(core.scheduler.schedule(), core.cache, torch.device("cpu"))
    widths = dict.fromkeys(core.cache.groups, 60)
    used = DecodeBuffers(4, widths, torch.device("cpu"))
    used.load(plan.batch)
    fresh = DecodeBuffers(4, widths, torch.device("cpu"))
    one = decoding(next(iter(CONFIGS)), requests=1)
    small = build_batch(one.scheduler.schedule(), one.cache, torch.device("cpu")).batch
    used.load(small)
    fresh.load(small)
    assert torch.equal(used.batch.state_slots, fresh.batch.state_slots)
    assert torch.equal(used.batch.seq_lens, fresh.batch.seq_lens)
    for kind, group in used.batch.groups.items():
        for field in ("block_table", "first_block", "slot_mapping"):
            assert torch.equal(getattr(group, field), getattr(fresh.batch.groups[kind], field))


def test_a_table_that_is_too_wide_does_not_fit():
    core = decoding(next(iter(CONFIGS)))
    plan = build_batch(core.scheduler.schedule(), core.cache, torch.device("cpu"))
    buffers = DecodeBuffers(4, dict.fromkeys(core.cache.groups, 0), torch.device("cpu"))
    assert not buffers.fit(plan.batch)


def test_a_window_has_the_width_of_its_longest_decode():
    from plamo_ref.bench.shapes import SHAPES
    from plamo_ref.engine.config import EngineConfig
    from plamo_ref.engine.planner import plan_memory

    plan = plan_memory(
        SHAPES["8b"], EngineConfig(), 10**10, dtype=torch.bfloat16, state_dtype=torch.float32
    )
    assert table_widths(plan) == {"sliding_window": 130}
