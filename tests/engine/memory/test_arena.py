"""One arena: pages of two kinds, the books of them, the tensors that lie there, and their plan.

Invariant tested: a page is of one pool or of none; what is said to fit can be taken, and nothing
more; places of different numbers share no byte, unless they are of one page and of two kinds. That
the tokens are the same is the law's to say (test_engine_law.py draws arenas, too).
"""

from collections import Counter
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from engines import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from plamo_ref import LLM, SamplingParams
from plamo_ref.batch import AttentionCache, MambaCache
from plamo_ref.bench.shapes import SHAPES
from plamo_ref.bench.simulator import Trace, replay
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.copies import copy_places
from plamo_ref.engine.memory.arena import Arena, Claim, PagedPool
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.holding import AttentionGroup, Copy
from plamo_ref.engine.memory.pages import Pages, PageShape, PageUse, page_shape
from plamo_ref.engine.memory.planner import MemoryPlan, plan_memory
from plamo_ref.engine.memory.pool import PoolError
from plamo_ref.engine.page_views import paged_caches
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Queues, Schedule

GIB = 1 << 30
TWO_B = Plamo2Config(
    hidden_size=2048, num_hidden_layers=32, intermediate_size=5632, vocab_size=100_032
)
PUBLISHED = {
    **SHAPES,
    "translate": replace(SHAPES["8b"], vocab_size=100_032, tie_word_embeddings=False),
    "2.1-2b": TWO_B,
    "2.1-8b, every fourth attention layer full": replace(
        SHAPES["8b"], full_attention_idx=tuple(range(7, 32, 8))
    ),
}


# --- the books ------------------------------------------------------------------------------------


class ArenaAndItsModel(RuleBasedStateMachine):
    """Three kinds of places, of one, three and four in a page, and who owns them."""

    @initialize(spare=st.integers(0, 5))
    def start(self, spare: int) -> None:
        uses = {
            "slot": PageUse(1, 2, 2, 2),
            "window": PageUse(3, 1, 7, 2),
            "full": PageUse(4, 1, 4, 1),
        }
        self.arena = Arena(1 + 4 + spare)
        least = {"slot": 1, "window": 2, "full": 1}
        self.pools = [
            PagedPool(name, self.arena, use, least[name], use.count) for name, use in uses.items()
        ]
        self.held: list[list[int]] = [[], [], []]
        self.frozen: list[list[int]] = [[], [], []]

    @rule(which=st.integers(0, 2), count=st.integers(0, 6))
    def take(self, which: int, count: int) -> None:
        pool = self.pools[which]
        if count > pool.num_free:
            with pytest.raises(PoolError, match="wanted"):
                pool.take(count)
            return
        places = pool.take(count)
        assert not {*places} & {*self.held[which], *self.frozen[which]}
        assert all(place in pool.use.places(place // pool.use.pitch) for place in places)
        assert all(place // pool.use.pitch for place in places), "the null page is nobody's"
        self.held[which] += places

    @rule(which=st.integers(0, 2), move=st.sampled_from("bsfg"), data=st.data())
    def move(self, which: int, move: str, data: st.DataObject) -> None:
        pool, held, frozen = self.pools[which], self.held[which], self.frozen[which]
        choice = {"b": held, "f": held, "g": frozen, "s": held + frozen}[move]
        if not choice:
            return
        places = data.draw(st.lists(st.sampled_from(sorted(set(choice))), unique=True))
        moves = {"b": pool.give_back, "f": pool.freeze, "g": pool.give_up, "s": pool.share}
        moves[move](places)
        for place in places:
            if move in "bf":
                held.remove(place)
            if move == "g":
                frozen.remove(place)
        held += places if move == "s" else []
        frozen += places if move == "f" else []

    @rule()
    def clear(self) -> None:
        self.arena.clear()
        for pool, held, frozen in zip(self.pools, self.held, self.frozen, strict=True):
            pool.clear()
            held.clear()
            frozen.clear()

    @rule(data=st.data())
    def what_fits_can_be_taken_once_all_that_is_frozen_has_gone(self, data: st.DataObject) -> None:
        counts = [data.draw(st.integers(0, 9)) for _ in self.pools]
        given_back = [self.some(data, held) for held in self.held]
        shared = [
            self.some(data, {*f} - {*g}) for f, g in zip(self.frozen, given_back, strict=True)
        ]
        claims = [
            Claim(pool, count, pool.leaving(leaving), cold)
            for pool, count, leaving, cold in zip(
                self.pools, counts, given_back, shared, strict=True
            )
        ]
        fits, needs = self.arena.fits(claims), list(zip(self.pools, counts, strict=True))
        pools, arena, frozen = deepcopy((self.pools, self.arena, self.frozen))
        for pool, leaving, cold, gone in zip(pools, given_back, shared, frozen, strict=True):
            pool.share(cold)
            pool.give_back(leaving)
            pool.give_up(gone)
        taken = 0
        for pool, count in zip(pools, counts, strict=True):
            if count <= pool.num_free:
                pool.take(count)
                taken += 1
        assert fits == (taken == len(pools))
        assert not arena.differences()
        if not any(given_back) and not any(shared):
            self.room_is_short_of_what_has_to_go_first(fits, needs)

    def room_is_short_of_what_has_to_go_first(self, fits, needs):
        short = self.arena.short_of(needs)
        now = deepcopy(self.pools)
        if fits and short is None:
            for pool, (_, count) in zip(now, needs, strict=True):
                pool.take(count)
        assert fits or short is None, "what cannot be had is no reason to let anything go"

    def some(self, data: st.DataObject, places: list[int] | set[int]) -> list[int]:
        if not places:
            return []
        return data.draw(st.lists(st.sampled_from(sorted(set(places))), unique=True))

    @invariant()
    def agree(self) -> None:
        assert not self.arena.differences()
        for pool, held, frozen in zip(self.pools, self.held, self.frozen, strict=True):
            assert not pool.differences(Counter(held + frozen), Counter(frozen))
            assert pool.num_held == len({*held})
            assert pool.num_evictable == len({*frozen} - {*held})
            assert pool.num_free == len(pool.free_places())
            wanted = pool.num_available
            assert self.arena.fits([Claim(pool, wanted)])
            assert not self.arena.fits([Claim(pool, wanted + 1)])
            assert pool.capacity >= pool.num_used + pool.num_free


TestArenaAndItsModel = ArenaAndItsModel.TestCase
TestArenaAndItsModel.settings = settings(max_examples=50, stateful_step_count=20)


def test_one_page_is_no_block_for_each_of_two_kinds():
    """Each kind alone could have it, so a token that needs a block of both has to wait."""
    arena = Arena(1 + 3)
    groups = [AttentionGroup("sliding_window", 99), AttentionGroup("full", None)]
    pools = {g.kind: PagedPool(g.kind, arena, PageUse(1, 1, 1, 1), 1, 1) for g in groups}
    cache = HybridCache(groups, pools, None, 4, arena)
    queues, schedule = Queues(EngineConfig(block_size=4), cache, 2), Schedule()
    request = Request("r", (1,) * 5, SamplingParams(), (), 0, 0)
    queues.add(request)
    assert queues.admit(request, 4, schedule) == 4
    request.num_computed_tokens = 4
    assert [pool.num_available for pool in pools.values()] == [1, 1]
    assert queues.grant(request, 1, schedule) == 0
    assert schedule.preempted == [request]
    cache.check_integrity()


# --- the tensors ----------------------------------------------------------------------------------


def shape_of(name: str, size: int) -> PageShape:
    shape = page_shape(CONFIGS[name], size, 8, 8)
    assert isinstance(shape, PageShape)
    return shape


def caches_of(
    name: str, size: int, num_pages: int = 4
) -> tuple[PageShape, list[dict[str, Tensor]]]:
    shape = shape_of(name, size)
    pages = Pages(shape, num_pages, dict.fromkeys(shape.uses, 1), dict.fromkeys(shape.uses, 1))
    weight = torch.zeros(1, dtype=torch.float64)
    caches = paged_caches(CONFIGS[name], pages, size, weight, torch.float64)
    return shape, [vars(cache) for cache in caches]


MIXED = [name for name in CONFIGS if name not in ("sliding", "full")]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("name", MIXED)
def test_places_of_a_page_share_no_byte_and_no_other_page_sees_them(name, size):
    shape, caches = caches_of(name, size)
    kinds = CONFIGS[name].layer_kinds
    for kind, use in shape.uses.items():
        of_kind = [cache for cache, its in zip(caches, kinds, strict=True) if its == kind]
        tensors = [tensor for cache in of_kind for tensor in cache.values()]
        assert all(tensor.is_contiguous() for tensor in tensors)
        assert len({tensor.shape for tensor in tensors}) <= 2
        everything = [tensor for cache in caches for tensor in cache.values()]
        for tensor in everything:
            tensor.fill_(-1)
        number = 0
        for tensor in tensors:
            for place in use.places(2):
                tensor[place] = number
                number += 1
        read = [tensor[place] for tensor in tensors for place in use.places(2)]
        assert all((content == number).all() for number, content in enumerate(read))
        for other, its in zip(caches, kinds, strict=True):
            places = [place for page in (0, 1, 3) for place in shape.uses[its].places(page)]
            assert all((tensor[places] == -1).all() for tensor in other.values())


def test_pages_of_another_models_shape_are_refused():
    shape = shape_of("mamba and sliding", 2)
    pages = Pages(shape, 4, dict.fromkeys(shape.uses, 1), dict.fromkeys(shape.uses, 1))
    other = replace(CONFIGS["mamba and sliding"], mamba_num_heads=5)
    with pytest.raises(EngineError, match="do not fit"):
        paged_caches(other, pages, 2, torch.zeros(1, dtype=torch.float64), torch.float64)


COLUMNS = "mamba, sliding and full"


@given(data=st.data())
def test_copies_are_as_if_newcomers_had_made_them_one_by_one(data):
    """Whatever page is of whatever kind when a copy is noted."""
    size = data.draw(st.sampled_from([3, 4]))
    shape, caches = caches_of(COLUMNS, size)
    kinds, copies = CONFIGS[COLUMNS].layer_kinds, list[Copy]()
    layers = [(kind, cache, shape.uses[kind]) for kind, cache in zip(kinds, caches, strict=True)]
    everything = [tensor for cache in caches for tensor in cache.values()]
    for number, tensor in enumerate(everything):
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) + 10_000 * number)
    plain = caches_of(COLUMNS, size)[1]
    for one, other in zip(caches, plain, strict=True):
        for tensor in one:
            other[tensor].copy_(one[tensor])
    for _ in range(data.draw(st.integers(1, 4))):
        pages = data.draw(st.permutations([1, 2, 3]))
        ours = dict(zip(("mamba", "sliding_window", "full"), pages, strict=True))
        branch = []
        for kind in ("mamba", "sliding_window", "full")[: data.draw(st.sampled_from([1, 3]))]:
            use = shape.uses[kind]
            page = data.draw(st.integers(1, 3))
            source = data.draw(st.sampled_from(use.places(page)))
            branch.append(Copy(kind, source, data.draw(st.sampled_from(use.places(ours[kind])))))
        copies += branch
        read = [
            (plain[i][name], c.target, plain[i][name][c.source].clone())
            for c in branch
            for i, (kind, cache, _) in enumerate(layers)
            for name in cache
            if kind == c.kind
        ]
        for tensor, target, content in read:
            tensor[target] = content
    pitch = {kind: use.pitch for kind, use in shape.uses.items()}
    made = [MambaCache(**c) if k == "mamba" else AttentionCache(**c) for k, c, _ in layers]
    copy_places(made, kinds, copies, pitch)
    by_plain = [tensor for cache in plain for tensor in cache.values()]
    assert all(map(torch.equal, everything, by_plain))


# --- the plan -------------------------------------------------------------------------------------


def planned(config: Plamo2Config, budget: int, **engine: object) -> MemoryPlan:
    settings = {"one_arena": True, "enable_prefix_caching": True} | engine
    wanted = EngineConfig(**settings)  # type: ignore[arg-type]
    dtypes = {"dtype": torch.bfloat16, "state_dtype": torch.float32}
    return plan_memory(config, wanted, budget, **dtypes)  # type: ignore[arg-type]


@pytest.mark.parametrize("state_itemsize", [2, 4])
@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_shape_has_pages_of_one_slot_and_hardly_any_waste(
    name, size, state_itemsize
):
    config = PUBLISHED[name]
    shape = page_shape(config, size, 2, state_itemsize)
    assert isinstance(shape, PageShape)
    assert shape.uses["mamba"].count == 1
    states = config.state_bytes(2, state_itemsize)
    assert shape.page_bytes == states, "a slot's bytes, and no more"
    for kind, use in shape.uses.items():
        if kind != "mamba":
            blocks = config.kv_bytes_per_token(kind, 2) * size * use.count
            assert 15 / 16 <= blocks / (shape.columns * shape.column_bytes) <= 1


def test_where_no_page_can_be_there_are_two_rooms_and_the_plan_says_why():
    for name, why in {"sliding": "one kind of memory", "full": "one kind of memory"}.items():
        plan = planned(CONFIGS[name], 10**7)
        assert plan.pages is None
        assert why in plan.reasons[-1]
    odd = planned(PUBLISHED["8b"], 20 * GIB, block_size=17)
    assert odd.pages is None
    assert "no whole number of blocks" in odd.reasons[-1]
    ranks = planned(PUBLISHED["8b"], 20 * GIB, tensor_parallel_size=2)
    assert "several processes" in ranks.reasons[-1]
    small = planned(PUBLISHED["8b"], 140 << 20)
    assert "a request alone needs 4 pages" in small.reasons[-1]


def test_reasons_say_what_a_page_is_and_what_never_changes():
    plan = planned(PUBLISHED["8b"], 12 * GIB, max_num_seqs=256)
    text = "\n".join(plan.reasons)
    assert "one arena of 375 pages, 34,340,864 bytes each" in text
    assert "a page is 64 windowed blocks or 1 state slots, in 16 columns" in text
    assert "4 pages never change" in text
    assert plan.total_bytes == 375 * 34_340_864 <= plan.budget


@pytest.mark.parametrize("name", MIXED)
def test_what_is_allocated_is_what_was_planned(name):
    wanted = {"one_arena": True, "enable_prefix_caching": True, "block_size": 4}
    dtypes = {"dtype": torch.float64, "state_dtype": torch.float64}
    plan = plan_memory(CONFIGS[name], EngineConfig(**wanted), 400_000, **dtypes)
    assert plan.pages is not None
    shape, caches = plan.pages.shape, []
    made = paged_caches(
        CONFIGS[name], plan.pages, 4, torch.zeros(1, dtype=torch.float64), torch.float64
    )
    ends = {kind: use.places(plan.pages.num_pages - 1)[-1] for kind, use in shape.uses.items()}
    for kind, cache in zip(CONFIGS[name].layer_kinds, made, strict=True):
        caches += [len(tensor) > ends[kind] for tensor in vars(cache).values()]
    assert all(caches), "the last place of the last page is there"
    assert plan.total_bytes <= 400_000


# --- the engine -----------------------------------------------------------------------------------


def test_memory_flows_to_short_prompts_and_back_to_long_ones():
    """Two rooms put a window aside for every seat, whoever sits there."""
    trace = Trace.of(*[(2000, 8)] * 4, *[(100, 8, 30)] * 60, *[(2000, 8, 90)] * 4)
    settings = {"max_num_seqs": 60, "max_num_batched_tokens": 4096, "max_model_len": 4096}
    steps = {}
    for one_arena in (False, True):
        engine = EngineConfig(one_arena=one_arena, overlap=False, **settings)
        dtypes = {"dtype": torch.bfloat16, "state_dtype": torch.float32}
        plan = plan_memory(PUBLISHED["8b"], engine, 3 * GIB, **dtypes)
        records = replay(trace, engine, plan)
        most = max(len(record.scheduled) for record in records)
        steps[one_arena] = (len(records), most, plan.max_num_seqs)
    assert steps[False][1] == steps[False][2] < 32
    assert steps[True][1:] == (60, 60)
    assert steps[True][0] < steps[False][0]


def test_an_engine_says_the_same_in_one_arena():
    said = {}
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    chat = [[7 + i] * 40 + [100 + i] for i in range(6)]
    for one_arena in (False, True):
        llm = LLM(
            "tiny",
            device="cpu",
            dtype="float64",
            memory_bytes=64 << 20,
            one_arena=one_arena,
            enable_prefix_caching=True,
        )
        first = llm.generate(chat, params, use_tqdm=False)
        more = [[*c, *o.outputs[0].token_ids, 9, 9] for c, o in zip(chat, first, strict=True)]
        second = llm.generate(more, params, use_tqdm=False)
        said[one_arena] = [o.outputs[0].token_ids for o in (*first, *second)]
        assert [o.num_cached_tokens for o in second] == [52] * 6
        assert (llm.plan.pages is not None) == one_arena
        llm.core.cache.check_integrity()
    assert said[True] == said[False]
