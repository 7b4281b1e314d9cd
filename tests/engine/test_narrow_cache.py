"""The engine with states in few bits: which of its laws hold, and to which extent.

A state is rounded where a step ends. So what a request says depends on where its prompt was cut,
and on nothing else: cut in the same places it has the same logits alone and in company, with either
scheduler, overlapped or not, on one rank or two, with its memory in pages or not; a photograph of
it changes nothing for itself; and who begins at one says what it would have said with a cut there.

Invariant tested: exactly that, in float64, and that the state is as far from an exact one as its
format is coarse.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from plamo_ref.batch import AttentionCache, MambaCache, NarrowCache
from plamo_ref.bench.shapes import SHAPES
from plamo_ref.engine.build import new_core
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.copies import tensors_of
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.device_bytes import plan_device
from plamo_ref.engine.memory.pages import Pages, PageShape, page_shape
from plamo_ref.engine.memory.planner import plan_memory
from plamo_ref.engine.runner import ModelRunner, new_caches
from plamo_ref.kernels.attention.narrow import as_kept
from plamo_ref.kernels.ssm.narrow import ReplayCache, widen
from plamo_ref.proof.lab import lab_config, lab_plan, least_blocks, random_pair, random_tensors
from plamo_ref.proof.law import audit, poison
from plamo_ref.proof.ranks import threaded_runner
from plamo_ref.proof.sharing import in_one_arena
from plamo_ref.sampling import SamplingParams

F64, FP8, INT8, BF16 = torch.float64, torch.float8_e4m3fn, torch.int8, torch.bfloat16
FORMATS = [(FP8, False), (FP8, True), (INT8, True), (BF16, True)]
KEPT = pytest.mark.parametrize(("dtype", "stochastic"), FORMATS)
CONFIG = lab_config(hidden_size_per_head=16, mamba_d_state=32, mamba_num_heads=2)
PROMPTS = (
    (5, 9, 33, 60, 2, 2, 17, 41, 8, 3, 11, 12, 30, 31, 7, 19, 4),
    (7, 12, 50),
    (21, 22, 23, 24, 25, 26, 27, 28),
)
Said = dict[str, tuple[list[int], list[Tensor]]]


def plan_of(
    dtype: torch.dtype,
    stochastic: bool,
    *,
    pages: bool = False,
    kv: torch.dtype | None = None,
    replay: int = 1,
) -> Any:
    plan = lab_plan(
        CONFIG,
        block_size=4,
        blocks={kind: 6 * count for kind, count in least_blocks(CONFIG, 4, 40).items()},
        slots=12,
        max_num_seqs=3,
    )
    plan = replace(plan, stochastic=stochastic, kv_dtype=kv, replay=replay)
    if not pages:
        return plan
    shape = page_shape(CONFIG, 4, 8, dtype.itemsize, kv and kv.itemsize, replay)
    assert isinstance(shape, PageShape)
    least = dict.fromkeys(shape.uses, 10)
    return in_one_arena(plan, Pages(shape, 60, least, least))


def said(
    dtype: torch.dtype,
    stochastic: bool,
    prompts: tuple[tuple[int, ...], ...] = PROMPTS,
    *,
    pages: bool = False,
    kv: torch.dtype | None = None,
    replay: int = 1,
    ranks: int = 1,
    turns: bool = False,
    **engine: Any,
) -> Said:
    """Ids and logits of each request by name. turns: one after the other."""
    models = random_pair(CONFIG)
    plan = plan_of(dtype, stochastic, pages=pages, kv=kv, replay=replay)
    if ranks == 1:
        runner = ModelRunner(models.served, plan, dtype)
    else:
        runner = threaded_runner(CONFIG, random_tensors(CONFIG), plan, ranks)
        for rank in runner.ranks:
            rank.caches = new_caches(rank.model, plan, dtype)
    settings = {"max_num_batched_tokens": 64, "block_size": 4, "max_num_seqs": 3} | engine
    settings |= {"tensor_parallel_size": ranks}
    core = new_core(runner, plan, EngineConfig(dtype="float64", device="cpu", **settings))
    seen: dict[str, list[Tensor]] = {}

    def look(record: object, requests: Any, rows: Tensor) -> None:
        for request, row in zip(requests, rows, strict=True):
            seen.setdefault(request.request_id, []).append(row.clone())

    core.observers.append(look)
    greedy, found = SamplingParams(temperature=0, max_tokens=9), []
    poison(core)
    for number, prompt in enumerate(prompts):
        found.append(core.add(prompt, greedy, (), f"r{number}"))
        while turns and core.has_work:
            step(core)
    while core.has_work:
        step(core)
    return {r.request_id: (list(r.output_ids), seen[r.request_id]) for r in found}


def step(core: EngineCore) -> None:
    core.step()
    audit(core)
    poison(core)


def agree(one: Said, other: Said, within: float = 1e-10) -> None:
    assert one.keys() == other.keys()
    for name, (ids, logits) in one.items():
        assert other[name][0] == ids
        for a, b in zip(logits, other[name][1], strict=True):
            assert (a - b).abs().max() <= within, name


@KEPT
def test_the_company_changes_nothing(dtype, stochastic):
    together = said(dtype, stochastic)
    agree(together, said(dtype, stochastic, turns=True))
    agree(together, said(dtype, stochastic, scheduler="v0"))
    agree(together, said(dtype, stochastic, overlap=True))
    agree(together, said(dtype, stochastic, pages=True))


@pytest.mark.parametrize(("dtype", "stochastic"), [(INT8, True), (FP8, False)])
def test_two_ranks_say_what_one_says(dtype, stochastic):
    agree(said(dtype, stochastic), said(dtype, stochastic, ranks=2))


@pytest.mark.parametrize("pages", [False, True])
@KEPT
def test_where_the_cuts_agree_a_prefix_that_is_found_changes_nothing(dtype, stochastic, pages):
    """Prompts cut every 8 tokens, where states are also kept: a turn that begins with an earlier
    prompt goes on from a state that it would have had."""
    longer = (*PROMPTS[0], 40, 41, 42, 43, 44)
    prompts = (PROMPTS[0], longer, PROMPTS[0][:12])
    cut = {"scheduler": "v0", "chunk_size": 8, "turns": True, "pages": pages}
    plain = said(dtype, stochastic, prompts, **cut)
    keeping = {"enable_prefix_caching": True, "photograph_interval": 8}
    agree(plain, said(dtype, stochastic, prompts, **cut, **keeping))


@KEPT
def test_a_photograph_changes_nothing_for_whom_it_is_of(dtype, stochastic):
    keeping = {"enable_prefix_caching": True, "photograph_interval": 4}
    agree(said(dtype, stochastic), said(dtype, stochastic, **keeping))


def test_other_cuts_are_other_states():
    """What does not hold, lest somebody think so."""
    whole = said(INT8, True)
    cut = said(INT8, True, scheduler="v0", chunk_size=4)
    differences = [(a - b).abs().max() for a, b in zip(whole["r0"][1], cut["r0"][1], strict=False)]
    assert max(differences) > 1e-6
    exact = said(F64, False)
    agree(exact, said(F64, False, scheduler="v0", chunk_size=4))


def of_slot(cache: MambaCache, slot: int) -> Tensor:
    if isinstance(cache, NarrowCache):
        return widen(cache, torch.tensor([slot]), F64)[0]
    return cache.ssm[slot].to(F64)


@pytest.mark.parametrize(
    ("dtype", "most"), [(FP8, 0.06), (INT8, 0.08), (BF16, 0.004)], ids=["fp8", "int8", "bf16"]
)
@pytest.mark.parametrize("stochastic", [False, True])
def test_a_state_is_as_far_from_an_exact_one_as_its_format_is_coarse(dtype, most, stochastic):
    """After a prompt and 8 tokens, each of which has rounded it."""

    exact, got = state_after(F64, False), state_after(dtype, stochastic)
    error = float((got - exact).norm() / exact.norm())
    assert most / 40 < error < most


def state_after(kept: torch.dtype, by_chance: bool) -> Tensor:
    """The states of all layers behind a prompt and 8 tokens."""
    models, plan = random_pair(CONFIG), plan_of(kept, by_chance)
    core = new_core(
        ModelRunner(models.served, plan, kept),
        plan,
        EngineConfig(dtype="float64", device="cpu", block_size=4, max_num_seqs=3),
    )
    request = core.add(PROMPTS[0], SamplingParams(temperature=0, max_tokens=40))
    for _ in range(9):
        core.step()
    slot = core.cache.holdings[request.request_id].slot
    mamba = [c for c in core.runner.caches if isinstance(c, MambaCache)]
    return torch.stack([of_slot(c, slot) for c in mamba])


# --- states that are written every k tokens -------------------------------------------------------


@pytest.mark.parametrize("replay", [3, 4, 16])
def test_what_is_written_less_often_is_the_same(replay):
    """To the law: whoever comes when, cut anywhere, found or not, on one rank or two."""
    exact, own = said(F64, False), {"replay": replay}
    agree(exact, said(F64, False, **own))
    agree(exact, said(F64, False, **own, turns=True, overlap=True))
    agree(exact, said(F64, False, **own, scheduler="v0", chunk_size=3))
    agree(exact, said(F64, False, **own, max_num_batched_tokens=4))  # parts of one token, too
    agree(exact, said(F64, False, **own, ranks=2))
    keeping = {"enable_prefix_caching": True, "photograph_interval": 5, "turns": True}
    longer = (*PROMPTS, (*PROMPTS[0], 40, 41, 42), PROMPTS[0][:9])
    for pages in (False, True):
        found = said(F64, False, longer, **own, **keeping, pages=pages)
        agree(said(F64, False, longer), found)


@pytest.mark.parametrize(("dtype", "stochastic"), [(INT8, True), (FP8, False), (BF16, True)])
def test_narrow_and_written_less_often(dtype, stochastic):
    own = {"replay": 4}
    together = said(dtype, stochastic, **own)
    agree(together, said(dtype, stochastic, **own, turns=True, pages=True))
    agree(together, said(dtype, stochastic, **own, scheduler="v0", overlap=True))
    agree(together, said(dtype, stochastic, **own, ranks=2))
    cut = {"scheduler": "v0", "chunk_size": 8, "turns": True, "replay": 4}
    prompts = (PROMPTS[0], (*PROMPTS[0], 40, 41, 42, 43, 44), PROMPTS[0][:12])
    keeping = {"enable_prefix_caching": True, "photograph_interval": 8}
    agree(
        said(dtype, stochastic, prompts, **cut), said(dtype, stochastic, prompts, **cut, **keeping)
    )


@pytest.mark.parametrize("one_arena", [False, True])
@pytest.mark.parametrize("name", ["auto", "fp8"])
def test_a_plan_counts_the_bytes_of_rings(name, one_arena):
    engine = EngineConfig(
        dtype="float32", state_dtype=name, state_replay=8, one_arena=one_arena, block_size=4,
        max_num_seqs=3, max_model_len=64,
    )  # fmt: skip
    kept = engine.resolve_state_dtype(torch.float32)
    plan = plan_memory(CONFIG, engine, 2_000_000, dtype=torch.float32, state_dtype=kept)
    assert (plan.pages is not None) == one_arena
    assert plan.replay == 8
    caches = new_caches(random_pair(CONFIG, torch.float32).served, plan, kept)
    of_mamba = [cache for cache in caches if isinstance(cache, MambaCache)]
    assert all(isinstance(cache, ReplayCache) for cache in of_mamba)
    parts = [tensor for cache in of_mamba for tensor in tensors_of(cache)]
    assert sum(tensor[:1].nbytes for tensor in parts) == plan.slot_bytes
    assert all(len(tensor) >= plan.num_slots > 2 for tensor in parts)
    (line,) = [line for line in plan.reasons if "written every 8 tokens (state_replay)" in line]
    assert f"{plan.slot_bytes:,}" in line


def test_a_ring_that_weighs_more_than_it_saves_is_refused():
    for wrong in (0, 17, 2.5):
        with pytest.raises(EngineError, match="state_replay"):
            EngineConfig(state_replay=wrong)


# --- keys and values ------------------------------------------------------------------------------


def test_narrow_keys_know_no_cuts():
    """A key is rounded once, by itself, before anybody reads it: the law holds as ever."""
    whole = said(F64, False, kv=FP8)
    agree(whole, said(F64, False, kv=FP8, turns=True, overlap=True))
    agree(whole, said(F64, False, kv=FP8, scheduler="v0", chunk_size=3))
    agree(whole, said(F64, False, kv=FP8, max_num_batched_tokens=5))
    agree(whole, said(F64, False, kv=FP8, pages=True, enable_prefix_caching=True))
    agree(whole, said(F64, False, kv=FP8, ranks=2))
    exact = said(F64, False)
    firsts = [float((whole[n][1][0] - exact[n][1][0]).abs().max()) for n in exact]
    assert 1e-4 < max(firsts) < 1.0


def test_a_state_and_keys_can_both_be_narrow():
    both = {"kv": FP8, "scheduler": "v0", "chunk_size": 8}
    keeping = {"enable_prefix_caching": True, "photograph_interval": 8, "pages": True}
    agree(said(INT8, True, **both), said(INT8, True, **both, **keeping))


def test_a_key_too_large_for_its_format_is_kept_as_the_largest():
    x = torch.tensor([500.0, -1e9, 3.3, 0.0])
    assert as_kept(x, FP8).float().tolist() == [448.0, -448.0, 3.25, 0.0]
    assert as_kept(x, torch.float32) is x


@pytest.mark.parametrize("one_arena", [False, True])
def test_a_plan_counts_the_bytes_of_narrow_keys(one_arena):
    size = {"block_size": 16, "max_num_seqs": 3, "max_model_len": 64, "one_arena": one_arena}
    engine = EngineConfig(dtype="float32", kv_cache_dtype="fp8", **size)
    dtypes = {"dtype": torch.float32, "state_dtype": torch.float32}
    plan = plan_memory(CONFIG, engine, 4_000_000, **dtypes)
    wide = plan_memory(CONFIG, replace(engine, kv_cache_dtype="auto"), 4_000_000, **dtypes)
    assert (plan.pages is not None) == one_arena
    assert {kind: 4 * n for kind, n in plan.block_bytes.items()} == wide.block_bytes
    caches = new_caches(random_pair(CONFIG, torch.float32).served, plan, torch.float32)
    for kind, cache in zip(CONFIG.layer_kinds, caches, strict=True):
        if isinstance(cache, AttentionCache):
            assert cache.keys.dtype == cache.values.dtype == FP8
            assert len(cache.keys) >= plan.num_blocks[kind]
            assert 2 * cache.keys[0].nbytes == plan.block_bytes[kind]
    assert any("keys and values as fp8 (kv_cache_dtype)" in line for line in plan.reasons)


def test_vllms_names_for_narrow_keys():
    for name in ("fp8", "fp8_e4m3", FP8):
        assert EngineConfig(kv_cache_dtype=name).kv_cache_dtype == "fp8"
    with pytest.raises(EngineError, match="kv_cache_dtype"):
        EngineConfig(kv_cache_dtype="fp8_e5m2")


# --- the plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_arena", [False, True])
@pytest.mark.parametrize("name", ["fp8", "int8"])
def test_a_plan_counts_the_bytes_of_a_narrow_state(name, one_arena):
    """Slots of a quarter of the size: as many bytes as the tensors have, scales included."""
    engine = EngineConfig(
        dtype="float32", state_dtype=name, one_arena=one_arena, block_size=4, max_num_seqs=3
    )
    state_dtype = engine.resolve_state_dtype(torch.float32)
    assert state_dtype.itemsize == 1
    model = random_pair(CONFIG, torch.float32).served
    dtypes = {"dtype": torch.float32, "state_dtype": state_dtype}
    plan = plan_memory(CONFIG, engine, 400_000, **dtypes)
    wide = plan_memory(
        CONFIG, replace(engine, state_dtype="auto"), 400_000, **dtypes | {"state_dtype": F64}
    )
    assert plan.num_slots >= wide.num_slots
    assert (plan.pages is not None) == one_arena
    caches = new_caches(model, plan, state_dtype)
    used = 0
    for cache in caches:
        if isinstance(cache, MambaCache):
            used += sum(tensor[:1].nbytes for tensor in tensors_of(cache))
            assert isinstance(cache, NarrowCache)
            assert cache.scales is not None
            assert len(cache.scales) >= plan.num_slots > 2
    assert used == plan.slot_bytes
    assert plan.total_bytes <= 400_000
    (said,) = [line for line in plan.reasons if "scale for each head (state_dtype)" in line]
    assert f"states as {name}" in said
    assert f"{plan.slot_bytes:,}" in said


def test_narrow_states_buy_an_8b_more_seats():
    engine = EngineConfig(max_num_seqs=4096, max_num_batched_tokens=4096)
    seats = []
    for name in ("float32", "bfloat16", "fp8"):
        own = replace(engine, state_dtype=name)
        seats.append(plan_device(SHAPES["8b"], own, 80 << 30, BF16).max_num_seqs)
    assert seats == sorted(set(seats))


def test_a_rounding_that_has_nothing_to_round_is_refused():
    for name in ("auto", "float32", "float64"):
        with pytest.raises(EngineError, match="state_rounding='stochastic' is for states in fewer"):
            EngineConfig(state_dtype=name, state_rounding="stochastic")
    for name in ("bfloat16", "fp8", "int8"):
        assert EngineConfig(state_dtype=name, state_rounding="stochastic").state_dtype == name
    assert EngineConfig(state_dtype=torch.float8_e4m3fn).state_dtype == "fp8"
    assert EngineConfig(state_dtype="fp8_e4m3").state_dtype == "fp8"
    with pytest.raises(EngineError, match="state_rounding"):
        EngineConfig(state_dtype="int8", state_rounding="up")
