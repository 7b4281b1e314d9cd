"""From bytes to blocks and slots.

Invariant tested: a plan fits its budget, seats everybody it promises to seat, and a budget that is
too small is refused with the number that would do.
"""

import math
import re

import pytest
import torch
from engines import CONFIGS, random_pair
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo_ref import LLM
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.memory.device_bytes import CPU_CACHE_BYTES, cache_budget
from plamo_ref.engine.memory.holding import AttentionGroup, attention_groups
from plamo_ref.engine.memory.planner import (
    MemoryPlan,
    plan_memory,
)
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.engine.scheduling.limits import longest_request

GIB = 1 << 30
SHAPE_1B = Plamo2Config(
    hidden_size=2048,
    num_hidden_layers=16,
    num_attention_heads=16,
    num_key_value_heads=1,
    mamba_num_heads=32,
    intermediate_size=8192,
    vocab_size=100_000,
)
SHAPE_8B = Plamo2Config(
    intermediate_size=16384, vocab_size=100_032, tie_word_embeddings=False, rope_theta=1e6
)


def planned(config: Plamo2Config, budget: int, **engine: object) -> MemoryPlan:
    return plan_memory(
        config,
        EngineConfig(**engine),  # type: ignore[arg-type]
        budget,
        dtype=torch.bfloat16,
        state_dtype=torch.float32,
    )


def plan_or_refusal(config: Plamo2Config, budget: int, **engine: object) -> MemoryPlan | str:
    try:
        return planned(config, budget, **engine)
    except EngineError as error:
        return str(error)


@given(
    name=st.sampled_from(list(CONFIGS)),
    budget=st.integers(0, 3_000_000),
    seats=st.integers(1, 20),
    block_size=st.integers(1, 20),
    batched=st.integers(1, 300),
    longest=st.none() | st.integers(1, 200),
    caching=st.booleans(),
)
def test_a_plan_fits_its_budget_and_seats_everybody(
    name, budget, seats, block_size, batched, longest, caching
):
    config = CONFIGS[name]
    engine = {
        "max_num_seqs": seats,
        "block_size": block_size,
        "max_num_batched_tokens": batched,
        "max_model_len": longest,
        "enable_prefix_caching": caching,
    }
    plan = plan_or_refusal(config, budget, **engine)
    if isinstance(plan, str):
        needed = int(re.search(r"one request needs ([\d,]+)", plan)[1].replace(",", ""))
        assert needed > budget
        assert f"{budget:,}" in plan
        assert planned(config, needed, **engine).max_num_seqs >= 1, "the number it names will do"
        return
    assert plan.total_bytes <= budget
    assert 1 <= plan.max_num_seqs <= seats
    slots = plan.num_slots - caching * max(0, plan.num_slots - 1 - plan.max_num_seqs)
    assert slots == (1 + plan.max_num_seqs if config.layers_of("mamba") else 0)
    cache = plan.new_cache()
    window = config.attention_window_size
    for seat in range(plan.max_num_seqs):  # all of them, one window each, at the same time
        for computed in range(min(window + block_size, longest or window + block_size)):
            assert cache.fit(f"{seat}", computed, 1)
            cache.allocate(f"{seat}", computed, 1)
    cache.check_integrity()
    assert planned_length(plan, longest) >= (longest or 1)
    unused = int(re.search(r"([\d,]+) bytes unused", plan.reasons[-1])[1].replace(",", ""))
    assert unused == budget - plan.total_bytes


def planned_length(plan: MemoryPlan, wanted: int | None) -> float:
    """Tokens that a request may have, as the engine that gets this plan would say it."""
    engine = EngineConfig(max_model_len=wanted)
    return longest_request(engine, plan.new_cache(), SHAPE_8B)


SETTINGS = {
    "name": st.sampled_from(list(CONFIGS)),
    "engine": st.fixed_dictionaries(
        {
            "max_num_seqs": st.integers(1, 20),
            "block_size": st.integers(1, 20),
            "max_num_batched_tokens": st.integers(1, 300),
            "max_model_len": st.none() | st.integers(1, 400),
            "enable_prefix_caching": st.booleans(),
            "one_arena": st.booleans(),
        }
    ),
}


@settings(max_examples=300)
@given(**SETTINGS, budget=st.integers(1, 400_000), more=st.integers(0, 40_000))
def test_more_memory_never_gives_less(name, engine, budget, more):
    less = plan_or_refusal(CONFIGS[name], budget, **engine)
    if isinstance(less, str):
        return
    larger = planned(CONFIGS[name], budget + more, **engine)
    longest = engine["max_model_len"]
    assert larger.max_num_seqs >= less.max_num_seqs
    assert planned_length(larger, longest) >= planned_length(less, longest)
    assert larger.num_slots >= less.num_slots
    for kind in less.num_blocks.keys() - {"sliding_window"}:
        assert larger.num_blocks[kind] >= less.num_blocks[kind]


@pytest.mark.parametrize("name", CONFIGS)
def test_not_one_byte_more_gives_less(name):
    """Every budget in turn: a drawn one hits the edge of a seat too rarely."""
    before = (0, 0.0)
    for budget in range(0, 120_000, 64):
        plan = plan_or_refusal(CONFIGS[name], budget, block_size=4, max_num_batched_tokens=16)
        if isinstance(plan, str):
            assert before == (0, 0.0)
            continue
        now = (plan.max_num_seqs, planned_length(plan, None))
        assert now[0] >= before[0]
        assert now[1] >= before[1]
        before = now
    assert before[0] > 2


@settings(max_examples=300)
@given(**SETTINGS, budget=st.integers(0, 200_000))
def test_who_does_what_a_refusal_says_gets_a_plan(name, engine, budget):
    refusal = plan_or_refusal(CONFIGS[name], budget, **engine)
    if isinstance(refusal, MemoryPlan):
        return
    needed = int(re.search(r"one request needs ([\d,]+)", refusal)[1].replace(",", ""))
    planned(CONFIGS[name], needed, **engine)
    with pytest.raises(EngineError, match="one request needs"):
        planned(CONFIGS[name], needed - 1, **engine)
    shorter = re.search(r"set max_model_len=(\d+) or less", refusal)
    most = 1 if shorter is None else int(shorter[1])
    for length in {2, most} if shorter else ():
        plan = planned(CONFIGS[name], budget, **engine | {"max_model_len": length})
        assert planned_length(plan, length) == length
    with pytest.raises(EngineError, match="one request needs"):
        planned(CONFIGS[name], budget, **engine | {"max_model_len": most + 1})


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("longest", [5, 40])
def test_a_request_of_the_greatest_length_fits_alone_into_the_smallest_plan(name, longest):
    engine = {"max_model_len": longest, "block_size": 3, "max_num_seqs": 9}
    plan = planned(CONFIGS[name], _needed(CONFIGS[name], **engine), **engine)
    cache = plan.new_cache()
    for computed in range(longest):
        assert cache.fit("it", computed, 1) == 1
        cache.allocate("it", computed, 1)
    cache.check_integrity()


def test_a_length_that_leaves_no_room_for_an_answer_is_no_advice():
    config, engine = CONFIGS["full"], {"block_size": 1, "max_num_seqs": 1}
    one, two = (_needed(config, **engine, max_model_len=length) for length in (1, 2))
    assert one < two
    for budget, advised in ((one, False), (two, True)):
        refusal = plan_or_refusal(config, budget, **engine, max_model_len=50)
        assert ("or set max_model_len=2 or less" in refusal) is advised
        assert ("max_model_len=1 or less" in refusal) is False


def _needed(config: Plamo2Config, **engine: object) -> int:
    refusal = plan_or_refusal(config, 0, **engine)
    return int(re.search(r"one request needs ([\d,]+)", refusal)[1].replace(",", ""))


def test_seats_give_way_to_length():
    """With room for four windows, or for one long request, it is the long request that counts."""
    config, size = CONFIGS["mamba and full"], {"block_size": 16}
    long = planned(config, 60_000, max_model_len=400, **size)
    short = planned(config, 60_000, max_model_len=40, **size)
    assert planned_length(long, 400) == 400
    assert long.max_num_seqs < short.max_num_seqs


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_allocated_is_what_was_planned(name):
    models = random_pair(CONFIGS[name], torch.float32)
    engine = EngineConfig(max_num_seqs=3)
    plan = plan_memory(
        models.config, engine, 400_000, dtype=torch.float32, state_dtype=torch.float64
    )
    runner = ModelRunner(models.served, plan, torch.float64)
    tensors = [tensor for cache in runner.caches for tensor in vars(cache).values()]
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors) == plan.total_bytes


def test_the_8b_shape_on_a_large_gpu():
    """State slot 32 MiB + conv; 16 tokens of keys and values over 16 layers are 512 KiB."""
    plan = planned(SHAPE_8B, 100 * GIB)
    conv = 16 * 8192 * 3 * 2
    assert plan.slot_bytes == 32 * (1 << 20) + conv
    assert plan.block_bytes == {"sliding_window": 512 * 1024}
    assert plan.max_num_seqs == 64
    assert plan.new_cache().longest_request() == math.inf
    # 64 windows of 129 blocks, 128 blocks for a step's prompt tokens, the null block.
    assert plan.num_blocks == {"sliding_window": 64 * 129 + 128 + 1}
    assert plan.num_slots == 65


def test_the_1b_shape_on_a_small_one():
    plan = planned(SHAPE_1B, GIB, max_num_seqs=256)
    assert plan.slot_bytes == 8 * 32 * 128 * (64 * 4 + 3 * 2)
    assert plan.block_bytes == {"sliding_window": 2 * 128 * 2 * 8 * 16}
    assert plan.total_bytes <= GIB
    assert plan.max_num_seqs == (GIB - plan.slot_bytes - 65536) // (plan.slot_bytes + 129 * 65536)
    assert f"{plan.max_num_seqs} seats, limited by memory" in plan.reasons[0]


def test_reasons_name_the_numbers():
    config = CONFIGS["mamba, sliding and full"]
    text = "\n".join(planned(config, 10**6, max_num_seqs=2, max_num_batched_tokens=32).reasons)
    assert "2 seats, limited by max_num_seqs" in text
    assert "enough for W + 1 = 7 keys" in text
    assert "prompt tokens of one step (max_num_batched_tokens=32)" in text
    assert "tokens for all requests together" in text
    text = "\n".join(planned(CONFIGS["mamba and sliding"], 10**6).reasons)
    assert "memory does not grow with its length" in text


def test_what_seats_do_not_want_is_for_what_was_computed():
    off, on = (planned(SHAPE_8B, 60 * GIB, enable_prefix_caching=on) for on in (False, True))
    assert (off.max_num_seqs, on.max_num_seqs) == (64, 64)
    assert off.num_slots == 1 + 64
    left = off.budget - off.total_bytes
    assert abs((on.num_slots - off.num_slots) * on.slot_bytes - left / 2) < on.slot_bytes
    assert on.budget - on.total_bytes < on.block_bytes["sliding_window"]
    assert f"{on.num_slots - 65:,} slots beside" in "\n".join(on.reasons)
    full = CONFIGS["mamba and full"]
    off, on = (planned(full, 10**7, enable_prefix_caching=on) for on in (False, True))
    assert off.num_slots == 65 < on.num_slots
    assert on.num_blocks["full"] * on.block_bytes["full"] > 10**7 * 0.49


def test_full_attention_takes_what_is_left_unless_lengths_are_limited():
    config = CONFIGS["mamba, sliding and full"]
    free = planned(config, 10**7, max_num_seqs=2)
    limited = planned(config, 10**7, max_num_seqs=2, max_model_len=160)
    assert limited.num_blocks["full"] == 1 + 2 * 10
    assert free.num_blocks["full"] > 1000
    assert free.num_blocks["sliding_window"] == limited.num_blocks["sliding_window"]


def test_a_budget_of_nothing_is_refused_with_what_to_do():
    with pytest.raises(EngineError, match=r"has 0 bytes.*Raise memory_bytes or gpu_memory"):
        planned(SHAPE_8B, 0)


def test_groups_are_those_of_the_layers():
    sliding, full = AttentionGroup("sliding_window", 6), AttentionGroup("full", None)
    assert attention_groups(CONFIGS["mamba, sliding and full"]) == (sliding, full)
    assert attention_groups(CONFIGS["mamba and sliding"]) == (sliding,)
    assert attention_groups(CONFIGS["full"]) == (full,)


def test_the_budget_is_the_users_or_one_gib_without_a_gpu():
    cpu = torch.device("cpu")
    assert cache_budget(EngineConfig(memory_bytes=12345), cpu, SHAPE_1B, 4) == 12345
    assert cache_budget(EngineConfig(), cpu, SHAPE_1B, 4) == CPU_CACHE_BYTES


def test_a_cache_that_the_machine_cannot_hold_is_refused_by_name():
    with pytest.raises(EngineError, match=r"cpu has no 4,611,.* bytes .*: lower memory_bytes"):
        LLM("tiny", device="cpu", memory_bytes=2**62)
