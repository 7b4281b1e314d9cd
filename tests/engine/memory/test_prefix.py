"""Prefix caching: which moment is found, what is shared and copied, and what goes when.

Invariant tested: the deepest checkpoint on a prompt's path is found, whatever was entered, frozen,
photographed and evicted; the books of tree and cache are in order after every move. That the tokens
are the same is the law's to say (test_engine_law.py).
"""

import random
from collections import Counter
from contextlib import suppress

import pytest
import torch
from engines import CONFIGS, new_core
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from plamo_ref import LLM, SamplingParams
from plamo_ref.batch import AttentionCache
from plamo_ref.engine import core as core_module
from plamo_ref.engine.copies import at_once, copy_places
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.arena import Arena, PagedPool
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.eviction import (
    LOOKED_AT,
    Checkpoint,
    LeastRecentlyUsed,
    SupersededFirst,
    is_superseded,
)
from plamo_ref.engine.memory.holding import AttentionGroup, Copy
from plamo_ref.engine.memory.pages import PageUse
from plamo_ref.engine.memory.pool import Pool
from plamo_ref.engine.memory.prefix import PrefixCache
from plamo_ref.engine.memory.radix import Node
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Schedule
from plamo_ref.engine.tokens import LogitsError
from plamo_ref.intake.prompts import PromptError
from plamo_ref.proof.audits import audit, check_covers, check_nothing_kept
from plamo_ref.proof.interrupts import interrupted
from plamo_ref.remote.stats import prefix_stats
from plamo_ref.sampling import GuidedError

FULL, SLIDING = "full", "sliding_window"


def new_prefix(
    blocks: int = 40,
    slots: int = 8,
    size: int = 2,
    window: int = 3,
    kinds: tuple = (SLIDING, FULL),
    eviction: type[LeastRecentlyUsed] = SupersededFirst,
) -> PrefixCache:
    groups = [AttentionGroup(kind, window if kind == SLIDING else None) for kind in kinds]
    pools = {kind: Pool(kind, blocks + 1, 10) for kind in kinds}
    room = Pool("slot", slots + 1, 100) if slots else None
    return PrefixCache(HybridCache(groups, pools, room, size), eviction=eviction)


def new_request(
    name: str, prompt: list[int], salt: str | None = None, borders: tuple[int, ...] = ()
) -> Request:
    params = SamplingParams(cache_salt=salt)
    return Request(name, tuple(prompt), params, (), 0, 0, borders=borders)


def text(node: Node) -> tuple[int, ...]:
    return tuple(token for each in reversed(list(node.path())) for token in each.tokens)


def compute(prefix: PrefixCache, request: Request, tokens: int) -> None:
    """Let a request begin, if it has not, and compute so many tokens more."""
    source = None
    if request.request_id not in prefix.cache.holdings:
        request.num_computed_tokens, found = prefix.find(request)
        source = None if found is None else prefix.use(found)
    prefix.cache.allocate(request.request_id, request.num_computed_tokens, tokens, source)
    request.num_computed_tokens += tokens


def answer(
    prefix: PrefixCache, name: str, prompt: list[int], output: list[int], *borders: int
) -> Request:
    """A request from its beginning to its end, as the schedulers would have it."""
    request = new_request(name, prompt, borders=borders)
    prefix.enter(request)
    prefix.begin(request, prefix.find(request)[0])
    compute(prefix, request, 1)
    request.output_ids += output
    while left := len(prompt) + len(output) - 1 - request.num_computed_tokens:
        prefix.photograph(request)
        compute(prefix, request, min(left, until_stop(prefix, request)))
    prefix.freeze(request)
    prefix.leave(request)
    prefix.cache.check_integrity()
    return request


def until_stop(prefix: PrefixCache, request: Request) -> int:
    """Tokens to the next moment that is wanted; many, if there is none."""
    stops = prefix.wanted(request, request.num_computed_tokens)
    return min([node.position - request.num_computed_tokens for node in stops], default=999)


def positions(prefix: PrefixCache) -> list[int]:
    return sorted(checkpoint.position for checkpoint in prefix.kept)


# --- against a dictionary -------------------------------------------------------------------------


class Life(RuleBasedStateMachine):
    """Requests with prompts of two tokens only, so that they often begin alike."""

    kinds: tuple = (SLIDING, FULL)
    slots = 4

    def __init__(self) -> None:
        super().__init__()
        self.prefix = new_prefix(blocks=9, slots=self.slots, kinds=self.kinds)
        self.prefix.most_gone = 2
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.count = 0

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=9),
        salt=st.sampled_from("ab"),
        borders=st.lists(st.integers(-1, 9), max_size=2),
    )
    def come(self, prompt, salt, borders):
        request = new_request(str(self.count), prompt, salt, tuple(borders))
        self.count += 1
        self.prefix.enter(request)
        self.waiting.append(request)

    @precondition(lambda self: self.waiting)
    @rule(tokens=st.integers(1, 5))
    def begin(self, tokens):
        request = self.waiting[0]
        computed, found = self.prefix.find(request)
        source = None if found is None else found.holding
        wanted = min(tokens, request.num_tokens - computed)
        fits = self.prefix.cache.fit(request.request_id, computed, wanted, source)
        if fits:
            self.running.append(self.waiting.pop(0))
            self.prefix.begin(request, computed)
            request.status = "running"
            compute(self.prefix, request, fits)
            check_covers(self.prefix.cache, request.request_id, request.num_computed_tokens)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 9), token=st.integers(0, 1), tokens=st.integers(1, 5))
    def go_on(self, which, token, tokens):
        request = self.running[which % len(self.running)]
        self.prefix.photograph(request)
        if request.num_uncomputed_tokens == 0:
            request.output_ids.append(token)
        computed = request.num_computed_tokens
        stop = until_stop(self.prefix, request)
        wanted = min(tokens, request.num_uncomputed_tokens, stop)
        fits = self.prefix.cache.fit(request.request_id, computed, wanted)
        if fits:
            compute(self.prefix, request, fits)
            check_covers(self.prefix.cache, request.request_id, request.num_computed_tokens)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 9), ends=st.booleans())
    def stop(self, which, ends):
        request = self.running.pop(which % len(self.running))
        self.prefix.freeze(request)
        if ends:
            self.prefix.leave(request)
        else:
            self.prefix.rest(request)
            request.reset()
            self.waiting.insert(0, request)

    @rule()
    def reset(self):
        self.prefix.reset()
        assert not self.prefix.kept
        assert not self.prefix.cache.frozen

    @invariant()
    def the_deepest_is_found(self):
        for request in self.waiting:
            known = (*request.prompt_ids, *request.output_ids)
            root = self.prefix.roots[request.params.cache_salt]
            kept = {text(c.node): c for c in self.prefix.kept if root in c.node.path()}
            beginnings = [known[:n] for n in range(len(known) - 1, 0, -1)]
            exact = next((kept[each] for each in beginnings if each in kept), None)
            self.check_found(*self.prefix.find(request), exact, beginnings, kept)

    def check_found(self, position, found, exact, beginnings, kept):
        assert found is exact
        assert position == (0 if found is None else found.position)

    @invariant()
    def who_waits_waits_for_somebody_on_the_way(self):
        for request in self.waiting:
            plain = waits_plainly(self.prefix, request, self.running)
            assert self.prefix.waits(request, self.running) == plain

    @invariant()
    def the_books_are_in_order(self):
        cache = self.prefix.cache
        cache.check_integrity()
        assert {checkpoint.holding for checkpoint in self.prefix.kept} == cache.frozen
        assert set(cache.holdings) == {request.request_id for request in self.running}
        for checkpoint in self.prefix.kept:
            for kind, table in checkpoint.holding.tables.items():
                first = 0 if kind == FULL else max(0, checkpoint.position - 3) // 2
                assert (table.first, table.end) == (first, -(-checkpoint.position // 2))
        superseded = {c for c in self.prefix.kept if is_superseded(c.node)}
        assert self.prefix.order.superseded.keys() == superseded
        live = [*self.waiting, *self.running]
        for salt, root in self.prefix.roots.items():
            assert root.children or root.num_live
            check_branch(root, [r for r in live if r.params.cache_salt == salt])


def waits_plainly(prefix: PrefixCache, request: Request, running: list[Request]) -> bool:
    """Whether anybody will come by a moment that is wanted, and better than what is there."""
    first = prefix.least + prefix.find(request)[0]
    nodes = [n for n in prefix._paths[request].path() if first <= n.position < request.num_tokens]
    return any(
        prefix._is_wanted(node) and node in prefix._paths[other].path()
        for other in running
        for node in nodes
        if node.position >= other.num_computed_tokens
    )


def check_branch(node: Node, live: list[Request]) -> int:
    """Recount what lives and is kept below; nothing stands there without a meaning.

    Args:
        live: requests whose path, all but the last token of their prompts, comes by here.
    """
    kept, last = int(node.kept is not None), node.position + 1
    ending = [r for r in live if len(r.prompt_ids) == last]
    borders = [r for r in live if 0 < node.position in r.borders and r not in ending]
    marking = [*ending, *borders]
    for token, child in node.children.items():
        assert child.parent is node
        assert child.tokens[0] == token
        assert child.position == node.position + len(child.tokens)
        ways = [(r, r.prompt_ids[node.position : -1]) for r in live]
        edge = child.tokens
        kept += check_branch(child, [r for r, way in ways if way[: len(edge)] == edge])
        assert all(way[: len(edge)] in (edge, way) for _, way in ways if way[:1] == edge[:1])
    meaning = node.kept is not None or marking or node.was_kept
    assert meaning or node.parent is None or len(node.children) > 1
    begun = sum(request.status == "running" for request in live)
    assert (node.num_marks, node.num_live, node.num_kept) == (len(marking), len(live), kept)
    assert node.num_begun == begun
    return kept


class LifeInOneArena(Life):
    """Pages of one slot, or three blocks; those that are not kept change their kind."""

    def __init__(self) -> None:
        super().__init__()
        arena, pools = Arena(11), {}
        for kind, count, least in ((SLIDING, 3, 1), (FULL, 3, 2), ("slot", 1, 1)):
            use = PageUse(count, 1, count, 1)
            pools[kind] = PagedPool(kind, arena, use, least, least * count)
        slots = pools.pop("slot")
        cache = HybridCache(self.prefix.cache.groups.values(), pools, slots, 2, arena)
        self.prefix = PrefixCache(cache)
        self.prefix.most_gone = 2


class LifeWithoutMamba(Life):
    """What is kept later on serves as well, as far as the window reaches back."""

    slots = 0

    def check_found(self, position, found, exact, beginnings, kept):
        assert position >= (0 if exact is None else exact.position)
        if found is not None:
            assert text(found.node)[:position] in beginnings
            stands_there = position == found.position
            assert stands_there or self.prefix.cache.serves(found.holding, position)


class LifeOfFullAttention(LifeWithoutMamba):
    """Whatever two texts have in common serves."""

    kinds = (FULL,)

    def check_found(self, position, found, exact, beginnings, kept):
        super().check_found(position, found, exact, beginnings, kept)
        common = [len(each) for each in beginnings for known in kept if known[: len(each)] == each]
        assert position == max(common, default=0)


LIVES = settings(max_examples=60, stateful_step_count=30)
TestLife, TestLifeWithoutMamba = Life.TestCase, LifeWithoutMamba.TestCase
TestLifeOfFullAttention, TestLifeInOneArena = LifeOfFullAttention.TestCase, LifeInOneArena.TestCase
TestLifeInOneArena.settings = LIVES
TestLife.settings = TestLifeWithoutMamba.settings = TestLifeOfFullAttention.settings = LIVES


# --- reuse ----------------------------------------------------------------------------------------


def test_full_blocks_are_shared_and_what_is_written_into_is_copied():
    prefix = new_prefix()
    first = answer(prefix, "first", [1, 2, 3, 4], [5, 6])  # kept behind 3 and 5 tokens
    assert positions(prefix) == [3, 5]
    follower = new_request("next", [*first.prompt_ids, *first.output_ids, 7])
    prefix.enter(follower)
    prefix.cache.copies.clear()
    position, kept = prefix.find(follower)
    assert (position, kept.position) == (5, 5)
    compute(prefix, follower, 1)
    mine, theirs = prefix.cache.holdings["next"], kept.holding
    assert mine.tables[FULL].blocks[:2] == theirs.tables[FULL].blocks[:2]
    assert mine.tables[FULL].blocks[2] != theirs.tables[FULL].blocks[2]
    assert mine.tables[SLIDING].first == 1  # token 5 sees tokens 2 to 5
    assert prefix.cache.copies == [
        Copy("mamba", theirs.slot, mine.slot),
        *[Copy(k, theirs.tables[k].blocks[-1], mine.tables[k].blocks[-1]) for k in (SLIDING, FULL)],
    ]


def test_with_a_single_slot_the_one_who_begins_takes_it_over():
    prefix = new_prefix(slots=1)
    answer(prefix, "first", [1, 2, 3, 4], [5, 6])
    assert positions(prefix) == [5]  # no room for a photograph
    (kept,) = prefix.kept
    follower = new_request("next", [1, 2, 3, 4, 5, 6, 7])
    prefix.enter(follower)
    assert prefix.cache.fit("next", 5, 2, kept.holding) == 2
    compute(prefix, follower, 2)
    assert prefix.cache.holdings["next"].slot == kept.holding.slot
    assert not prefix.kept
    prefix.cache.check_integrity()


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=9))
def test_copies_made_together_are_as_if_made_one_by_one(pairs):
    copies = [Copy(FULL, *pair) for pair in pairs]
    keys = torch.arange(6.0)[:, None]
    expected = keys.clone()
    for _, source, target in copies:
        expected[target] = expected[source]
    copy_places([AttentionCache(keys, keys.clone())], [FULL], copies)
    assert keys.equal(expected)
    assert [copy for together in at_once(copies) for copy in together] == copies


# --- eviction -------------------------------------------------------------------------------------


def test_where_nobody_alone_has_a_place_several_go():
    prefix = new_prefix(blocks=60, slots=60)
    for turn in range(1, 22):  # of one conversation: the last one's blocks are those of all
        answer(prefix, str(turn), list(range(4 * turn + 1)), [])
    blocks = prefix.cache.blocks[FULL]
    assert len(list(prefix.kept)) == 21
    assert prefix.cache.fit("new", 0, 2 * (blocks.num_free + 1)) == 2 * (blocks.num_free + 1)
    prefix.cache.allocate("new", 0, 2 * (blocks.num_free + 1))
    assert positions(prefix) == [4 * turn for turn in range(5, 21)]
    prefix.cache.check_integrity()


def test_what_somebody_waits_for_is_not_superseded_and_what_somebody_has_left_behind_is():
    prefix = new_prefix(slots=8)
    answer(prefix, "turn 1", [1, 2, 3, 4], [5])
    (kept,) = [kept for kept in prefix.kept if kept.position == 4]
    turns = [new_request(name, [1, 2, 3, 4, 5, 6, 7]) for name in "ab"]
    prefix.enter(turns[0])
    assert not is_superseded(kept.node)
    compute(prefix, turns[0], 1)
    prefix.begin(turns[0], 4)
    assert is_superseded(kept.node)  # what it has will be kept
    prefix.enter(turns[1])
    assert not is_superseded(kept.node)
    prefix.leave(turns[1])
    assert is_superseded(kept.node)
    prefix.rest(turns[0])
    assert not is_superseded(kept.node)
    assert prefix.order.superseded.keys() == {c for c in prefix.kept if is_superseded(c.node)}


def test_a_junction_stays_while_the_other_way_goes_to_make_room_for_it():
    prefix = new_prefix(slots=2)
    prefix.most_gone = 0
    answer(prefix, "other", [1, 2, 3, 4, 9, 9, 9, 9], [9])
    running = new_request("running", [1, 2, 3, 4, 5, 6, 7, 8])
    prefix.enter(running)
    compute(prefix, running, 4)
    prefix.photograph(running)
    assert positions(prefix) == [4]
    follower = new_request("follower", [1, 2, 3, 4, 5, 6])
    prefix.enter(follower)
    assert prefix.find(follower)[0] == 4
    (root,) = prefix.roots.values()
    check_branch(root, [running, follower])


def evicted_first(prefix: PrefixCache) -> list[int]:
    """Positions of checkpoints, as they go."""
    order = []
    while prefix.kept:
        before = positions(prefix)
        prefix.evict_for(prefix.cache.slots)
        after = positions(prefix)
        order.append(next(p for p in before if before.count(p) != after.count(p)))
    return order


def test_superseded_ones_go_first_and_a_second_text_saves_a_junction():
    prefix = new_prefix()
    answer(prefix, "turn 1", [1, 2, 3, 4], [5])  # 3 and 4
    answer(prefix, "turn 2", [1, 2, 3, 4, 5, 6, 7, 8], [9])  # 7 and 8: 3, 4 and 7 are superseded
    answer(prefix, "other", [1, 2, 3, 4, 8, 8], [8])  # parts from them behind 4: a junction
    names = {kept.position: is_superseded(kept.node) for kept in prefix.kept}
    assert positions(prefix) == [3, 4, 6, 7, 8]  # the other's prompt saves less than a block
    assert names == {3: True, 4: False, 7: True, 8: False, 6: False}
    assert sorted(evicted_first(prefix)[:2]) == [3, 7]


def test_plain_lru_throws_away_what_was_used_longest_ago():
    prefix = new_prefix(eviction=LeastRecentlyUsed)
    answer(prefix, "long", list(range(12)), [5])
    answer(prefix, "short", [20, 21, 22], [5])
    assert evicted_first(prefix) == [11, 12, 2, 3]


def test_of_two_the_one_that_saves_less_for_its_bytes_goes():
    prefix = new_prefix()
    answer(prefix, "short", [20, 21], [5])
    answer(prefix, "long", list(range(12)), [])
    assert positions(prefix) == [2, 11]  # … and the short one's prompt would save too little
    answer(prefix, "longest", list(range(20, 40)), [])
    assert evicted_first(prefix) == [2, 11, 19]


def test_what_is_worth_much_goes_all_the_same_when_nobody_comes_for_it():
    prefix = new_prefix(slots=4)
    answer(prefix, "worth much", list(range(100, 130)), [])
    for number in range(60):
        answer(prefix, str(number), [number] * 6, [])
        if 29 not in positions(prefix):
            break
    assert 2 < number < 59, "neither at once nor never"


def test_a_border_behind_which_others_are_expected_is_not_superseded():
    prefix = new_prefix()
    answer(prefix, "first", [1, 2, 3, 4, 5, 6, 7, 8], [9], 4, 6)
    kept = {each.position: is_superseded(each.node) for each in prefix.kept}
    assert kept == {4: False, 6: True, 8: False}


def chats_of(draw: random.Random) -> list[tuple[list[int], list[int]]]:
    """Twelve chats, whose turns come in any order."""
    texts = {chat: [chat] * 4 for chat in range(100, 112)}
    work = []
    for chat in draw.choices(list(texts), k=90):
        prompt = [*texts[chat], *draw.choices(range(50), k=4)]
        work.append((prompt, draw.choices(range(50), k=4)))
        texts[chat] = [*prompt, *work[-1][1]]
    return work


def questions_of(draw: random.Random) -> list[tuple[list[int], list[int]]]:
    """Eight documents of 20 tokens, about which others ask, and some who ask about nothing."""
    work = []
    for document in draw.choices([*range(100, 108), None], k=120):
        beginning = [] if document is None else [document] * 20
        work.append((beginning + draw.choices(range(50), k=4), draw.choices(range(50), k=3)))
    return work


@pytest.mark.parametrize("slots", [4, 8, 12, 16])
@pytest.mark.parametrize("draw_work", [chats_of, questions_of])
def test_more_is_found_than_by_plain_lru(draw_work, slots):
    work, found = draw_work(random.Random(1)), Counter()
    for eviction in (LeastRecentlyUsed, SupersededFirst):
        prefix = new_prefix(blocks=600, slots=slots, eviction=eviction)  # more than are used
        for number, (prompt, output) in enumerate(work):
            borders = (20,) if len(prompt) == 24 and prompt[0] == prompt[19] else ()
            request = answer(prefix, str(number), prompt, output, *borders)
            found[eviction] += request.num_cached_tokens or 0
    assert found[SupersededFirst] > found[LeastRecentlyUsed]


class PlainOrder(SupersededFirst):
    """The same rule without a heap: look at everything, every time."""

    def least(self, pool: Pool) -> Checkpoint:
        for each in list(self.superseded)[:LOOKED_AT]:
            if self._cache.frees(each.holding, pool):
                return each
        looked_at: list[object] = []
        while len(looked_at) < min(LOOKED_AT, len(self._entries)):
            entry = min(each for each in self._entries.values() if each not in looked_at)
            if self._number(entry[2]) > entry[0]:
                self._push(entry[2])
                continue
            if self._cache.frees(entry[2].holding, pool):
                self._last = entry[0]
                return entry[2]
            looked_at.append(entry)
        return next(iter([*self.superseded, *self.kept]))


@pytest.mark.parametrize(("blocks", "slots"), [(600, 8), (600, 20), (150, 40), (80, 30)])
@pytest.mark.parametrize("draw_work", [chats_of, questions_of])
def test_the_quick_order_is_the_plain_one(draw_work, blocks, slots):
    work, gone = draw_work(random.Random(2)), {}
    for eviction in (SupersededFirst, PlainOrder):
        prefix = new_prefix(blocks=blocks, slots=slots, eviction=eviction)
        gone[eviction] = went = []
        for number, (prompt, output) in enumerate(work):
            answer(prefix, str(number), prompt, output)
            went.append([text(kept.node) for kept in prefix.kept])
        assert prefix.counts.evicted > len(work) // 4
    assert gone[SupersededFirst] == gone[PlainOrder]


# --- the engine -----------------------------------------------------------------------------------


def say(core: EngineCore, prompt: list[int], most: int = 4, **asked: object) -> Request:
    params = SamplingParams(temperature=0, max_tokens=most, **asked)  # type: ignore[arg-type]
    request = core.add(prompt, params)
    run(core)
    return request


def run(core: EngineCore) -> None:
    while core.has_work:
        core.step()
        core.cache.check_integrity()


def computed(core: EngineCore) -> list[int]:
    """Filled with the number of tokens of each step."""
    steps: list[int] = []
    core.observers.append(lambda record, *_: steps.append(record.num_tokens))
    return steps


PROMPT = [(7 * i * i + 3 * i) % 61 for i in range(21)]


@pytest.mark.parametrize("photographs", [False, True])
@pytest.mark.parametrize("scheduler", ["v0", "v1"])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_the_same_prompt_the_next_turn_and_the_third_at_a_junction_hit(
    name, overlap, scheduler, photographs
):
    core = new_core(
        CONFIGS[name],
        seats=12,
        enable_prefix_caching=True,
        overlap=overlap,
        scheduler=scheduler,
        photographs=photographs,
        max_num_batched_tokens=64,
    )
    first = say(core, PROMPT)
    again = say(core, PROMPT)
    assert (first.num_cached_tokens, first.cache_miss) == (0, "first seen")
    assert (again.num_cached_tokens, again.cache_miss) == (20, "")
    assert again.output_ids == first.output_ids
    turn = say(core, [*PROMPT, *first.output_ids, 1, 2, 3])
    assert turn.num_cached_tokens == 24  # all whose state was there: the last was never computed
    visitors = [say(core, [*PROMPT[:13], *[40 + i] * 6]) for i in range(2)]
    # Where nothing but keys is needed, and no window hides them, the first one hits already.
    everywhere = set(CONFIGS[name].layer_kinds) == {"full"}
    assert [v.num_cached_tokens for v in visitors] == [13 if everywhere else 0, 13]
    assert visitors[0].cache_miss == ("first seen" if everywhere else "no state there")


@pytest.mark.parametrize("photographs", [False, True])
def test_a_crowd_with_one_new_beginning_computes_it_once(photographs):
    core = new_core(
        seats=8, enable_prefix_caching=True, max_num_batched_tokens=64, photographs=photographs
    )
    steps = computed(core)
    crowd = [
        core.add([*PROMPT, 50 + i, i, i], SamplingParams(max_tokens=1, seed=i)) for i in range(4)
    ]
    run(core)
    assert [r.num_cached_tokens for r in crowd] == [0, 21, 21, 21]
    assert sum(steps) == 21 + 4 * 3
    same = [core.add(PROMPT[::-1], SamplingParams(max_tokens=1, seed=i)) for i in range(4)]
    run(core)
    assert [r.num_cached_tokens for r in same] == [0, 20, 20, 20]


def test_photographs_inside_a_chunk_save_the_steps_of_cut_chunks():
    found, steps = {}, {}
    for photographs in (False, True):
        core = new_core(
            seats=8, enable_prefix_caching=True, max_num_batched_tokens=64, photographs=photographs
        )
        counts = computed(core)
        params = SamplingParams(temperature=0, max_tokens=1)
        core.add(PROMPT, params, borders=(6, 7, 13))  # 7 would save too little behind 6
        run(core)
        found[photographs], steps[photographs] = positions(core.queues.prefix), counts
    assert steps == {False: [6, 7, 7, 1], True: [21]}
    assert found == {False: [6, 13, 20, 21], True: [6, 13, 20, 21]}


def test_who_leaves_a_new_text_where_nobody_knew_begins_at_the_last_photograph_by_the_way():
    core = new_core(
        seats=9, enable_prefix_caching=True, max_num_batched_tokens=64, photograph_interval=5
    )
    assert say(core, PROMPT, most=1).num_cached_tokens == 0
    assert positions(core.queues.prefix) == [5, 10, 15, 20, 21]
    assert [c.position for c in core.queues.prefix.order.superseded] == [5, 10, 15, 20]
    assert say(core, [*PROMPT[:13], 40, 40]).num_cached_tokens == 10


def test_nothing_of_use_goes_for_a_photograph_by_the_way():
    core = new_core(
        seats=3, enable_prefix_caching=True, max_num_batched_tokens=64, photograph_interval=5
    )
    say(core, [50, 51, 52], most=1)
    say(core, PROMPT, most=1)
    assert positions(core.queues.prefix) == [3, 20, 21]


def test_several_requests_take_photographs_in_one_step_and_no_moment_is_taken_twice():
    core = new_core(seats=12, enable_prefix_caching=True, max_num_batched_tokens=64)
    plans, copies = [], []
    core.runner.copy = copies.extend
    place = core.runner.place
    core.runner.place = lambda room: (plans.append(room.photographs), place(room))[1]
    crowd = [
        core.add([first, *PROMPT[:9], second], SamplingParams(max_tokens=1, seed=1), borders=(5,))
        for first, second in ((1, 1), (2, 1), (3, 1))
    ]
    run(core)
    assert plans == [6]  # two of each
    assert not copies  # the step itself leaves the states
    assert positions(core.queues.prefix) == [5, 5, 5, 10, 10, 10, 11, 11, 11]
    assert all(r.num_cached_tokens == 0 for r in crowd)


@pytest.mark.parametrize("slots", [1, 2])
def test_without_a_slot_there_is_no_photograph_and_newcomers_go_first(slots):
    core = new_core(seats=slots, enable_prefix_caching=True, max_num_batched_tokens=64)
    requests = [core.add([i, *PROMPT], SamplingParams(max_tokens=2, seed=1)) for i in range(4)]
    core.step()
    assert [r.status for r in requests] == ["running"] * slots + ["waiting"] * (4 - slots)
    assert not core.queues.prefix.kept
    run(core)
    assert [len(r.output_ids) for r in requests] == [2] * 4


def test_a_photograph_of_a_request_that_comes_to_an_error_is_not_kept(monkeypatch):
    core = new_core(seats=8, enable_prefix_caching=True, max_num_batched_tokens=64)
    other = core.add(PROMPT[::-1], SamplingParams(max_tokens=1))
    broken = core.add(PROMPT, SamplingParams(max_tokens=1))
    choose = core_module.choose_on_device

    def wrong(requests, *args):
        if broken in requests:
            raise LogitsError("NaN")
        return choose(requests, *args)

    monkeypatch.setattr(core_module, "choose_on_device", wrong)
    run(core)
    assert (other.finish_reason, broken.finish_reason) == ("length", "error")
    assert {text(c.node)[0] for c in core.queues.prefix.kept} == {PROMPT[-1]}
    audit(core)
    core.reset_prefix_cache()
    check_nothing_kept(core)


def test_at_a_border_the_second_visitor_begins():
    core = new_core(seats=8, enable_prefix_caching=True, max_num_batched_tokens=64)
    found = []
    for i in range(3):
        params = SamplingParams(temperature=0, max_tokens=2)
        # One border is where they part, one saves too little, some are nowhere in the prompt.
        visitor = core.add([*PROMPT[:13], *[40 + i] * 6], params, borders=(13, 2, 0, 99, -1))
        run(core)
        found.append(visitor.num_cached_tokens)
    assert found == [0, 13, 13]
    assert positions(core.queues.prefix) == [13, 18, 18, 18, 20, 20, 20]


def test_nobody_waits_for_one_who_is_gone():
    core = new_core(seats=8, enable_prefix_caching=True, max_num_batched_tokens=8)
    requests = [core.add(PROMPT, SamplingParams(max_tokens=1), request_id=n) for n in "abc"]
    core.step()
    assert [r.status for r in requests] == ["running", "waiting", "waiting"]
    core.finish("a")
    core.step()
    assert requests[1].num_cached_tokens == 8  # as far as the other had come
    run(core)


def test_only_requests_with_the_same_salt_share():
    core = new_core(enable_prefix_caching=True)
    found = [say(core, PROMPT, cache_salt=salt) for salt in ("a", "b", "a", None)]
    assert [(r.num_cached_tokens, r.cache_miss) for r in found] == [
        *[(0, "first seen"), (0, "salt"), (20, ""), (0, "salt")]
    ]


def test_log_probabilities_of_a_prompt_are_computed():
    core = new_core(enable_prefix_caching=True)
    plain = say(core, PROMPT)
    asked = say(core, PROMPT, prompt_logprobs=1)
    assert (asked.num_cached_tokens, asked.cache_miss) == (0, "prompt logprobs")
    assert len(asked.prompt_logprobs) == 20
    assert asked.output_ids == plain.output_ids
    assert say(core, PROMPT).num_cached_tokens == 20


def test_what_was_evicted_is_said_and_a_reset_forgets():
    core = new_core(seats=2, enable_prefix_caching=True)
    say(core, PROMPT)
    for i in range(3):
        say(core, [i] * 9)
    assert say(core, PROMPT).cache_miss == "state evicted"
    core.reset_prefix_cache()
    assert core.cache.slots.num_used == 0
    assert say(core, PROMPT).cache_miss == "first seen"


def test_what_came_of_it_is_counted_once_for_each_request():
    core = new_core(seats=8, enable_prefix_caching=True)
    say(core, PROMPT)
    request = core.add(PROMPT, SamplingParams(temperature=0, max_tokens=8))
    for _ in range(3):
        core.step()
    core.queues.preempt(request, Schedule())
    run(core)
    stats = prefix_stats(core)
    assert (stats.asked, stats.found) == (2 * 21, 20)
    assert stats.misses == {"first seen": 1}
    assert request.num_cached_tokens == 20
    assert stats.num_kept == len(positions(core.queues.prefix))
    core.reset_prefix_cache()
    after = prefix_stats(core)
    assert (after.num_kept, after.bytes_kept) == (0, 0)
    assert stats.bytes_kept > 0
    off = new_core(seats=8)
    say(off, PROMPT)
    assert prefix_stats(off).asked == 0


def test_what_an_error_came_of_is_not_kept_and_a_grammars_error_says_nothing():
    core = new_core(seats=8, enable_prefix_caching=True)
    other = say(core, PROMPT[::-1])
    for error, left in ((GuidedError("a dead end"), [20]), (LogitsError("NaN"), [])):
        request = core.add(PROMPT, SamplingParams(max_tokens=4))
        for _ in range(3):
            core.step()
        core.finish(request.request_id, "error", error)
        mine = [c for c in core.queues.prefix.kept if text(c.node) == tuple(PROMPT[: c.position])]
        assert [checkpoint.position for checkpoint in mine] == left
        core.cache.check_integrity()
    assert say(core, other.prompt_ids).num_cached_tokens == 20


def test_a_request_that_leaves_before_its_last_token_is_an_error_leaves_nothing():
    core = new_core(seats=8, enable_prefix_caching=True, overlap=True)
    core.add(PROMPT, SamplingParams(temperature=0, max_tokens=1))
    for _ in range(2):  # of 16 and 5 tokens
        core.step()
    assert not core.queues.running
    assert positions(core.queues.prefix) == [20, 21]
    core.in_flight.tokens_on_host.fill_(-1)
    run(core)
    assert positions(core.queues.prefix) == []
    core.cache.check_integrity()


def test_a_preempted_request_goes_on_where_it_was():
    core = new_core(seats=8, enable_prefix_caching=True)
    request = core.add(PROMPT, SamplingParams(temperature=0, max_tokens=8))
    steps = computed(core)
    for _ in range(4):
        core.step()
    (root,) = core.queues.prefix.roots.values()
    assert (root.num_live, root.num_begun) == (1, 1)
    core.queues.preempt(request, Schedule())
    assert (root.num_live, root.num_begun) == (1, 0)  # so what it will come back to is not in vain
    run(core)
    assert (root.num_live, root.num_begun) == (0, 0)
    assert request.num_preemptions == 1
    assert sum(steps) == len(PROMPT) + 7  # nothing was computed twice


def test_an_interrupt_forgets_what_was_kept_and_changes_nobodys_tokens():
    def new_crowd(overlap: bool, on: bool = True) -> tuple[EngineCore, list[Request]]:
        core = new_core(enable_prefix_caching=on, overlap=overlap, more_blocks=4, longest=32)
        crowd = [
            core.add(PROMPT[:k], SamplingParams(seed=k, max_tokens=5)) for k in (9, 21, 9, 21, 14)
        ]
        return core, crowd

    for overlap in (False, True):
        core, undisturbed = new_crowd(overlap, on=False)
        run(core)
        for point in range(0, 1600, 211):
            core, crowd = new_crowd(overlap)
            for _ in range(point % 5):
                core.step()
            with interrupted(point) as interrupter, suppress(KeyboardInterrupt):
                core.step()
            run(core)
            ids = [r.output_ids for r in crowd]
            assert ids == [r.output_ids for r in undisturbed], interrupter.where


def test_a_step_that_is_broken_off_leaves_no_photograph():
    exposed = set()
    for point in range(0, 700, 41):
        core = new_core(seats=8, enable_prefix_caching=True, max_num_batched_tokens=64)
        cache = core.cache
        core.add(PROMPT, SamplingParams(max_tokens=2))
        clear = cache.clear
        cache.clear = lambda c=cache, clear=clear: (exposed.add(len(c.exposed)), clear())
        with interrupted(point), suppress(KeyboardInterrupt):
            core.step()
        kept = positions(core.queues.prefix)
        audit(core)
        run(core)
        audit(core)
        assert kept in ([], [20]), point
    assert exposed == {0, 1}, "some interrupts came while a photograph was being taken"


def test_who_is_interrupted_before_its_first_token_has_found_nothing():
    for point in range(20, 700, 97):
        core = new_core(enable_prefix_caching=True)
        say(core, PROMPT)
        request = core.add(PROMPT, SamplingParams(max_tokens=2))
        with interrupted(point) as interrupter, suppress(KeyboardInterrupt):
            core.step()
        run(core)
        told = 20 if interrupter.where is None else 0
        assert request.num_cached_tokens == told, interrupter.where


# --- what users see -------------------------------------------------------------------------------


def test_a_salt_can_come_with_the_prompt():
    llm = LLM("tiny", device="cpu", memory_bytes=1 << 24, enable_prefix_caching=True)
    params, ids = SamplingParams(max_tokens=2, cache_salt="mine"), list(range(100, 140))
    asked = [{"prompt_token_ids": ids}, {"prompt_token_ids": ids, "cache_salt": "other"}, ids]
    found = [llm.generate(each, params, use_tqdm=False)[0].num_cached_tokens for each in asked]
    assert found == [0, 0, 39]
    for salt in ("", 3):
        with pytest.raises(PromptError, match="the prompt: its cache_salt is"):
            llm.generate({"prompt": "a", "cache_salt": salt}, params)


def test_completions_of_one_prompt_share_its_work_and_outputs_say_how_much_was_found():
    settings = {"device": "cpu", "memory_bytes": 1 << 24, "block_size": 4}
    llm = LLM("tiny", enable_prefix_caching=True, **settings)
    plain = LLM("tiny", **settings)
    params = SamplingParams(n=3, seed=1, max_tokens=6)
    text = "It was the best of times, it was the worst of times"
    (output,), (expected,) = (each.generate(text, params, use_tqdm=False) for each in (llm, plain))
    assert [o.token_ids for o in output.outputs] == [o.token_ids for o in expected.outputs]
    assert (output.num_cached_tokens, expected.num_cached_tokens) == (0, 0)
    (again,) = llm.generate(text, params, use_tqdm=False)
    assert again.num_cached_tokens == len(again.prompt_token_ids) - 1
    assert llm.reset_prefix_cache() is True
    (new,) = llm.generate(text, params, use_tqdm=False)
    assert new.num_cached_tokens == 0


def test_the_tree_forgets_what_has_gone():
    """Requests that have nothing in common leave a bounded number of nodes."""
    prefix, ids = new_prefix(slots=4), random.Random(0)
    for number in range(600):
        answer(prefix, str(number), [ids.randrange(999) for _ in range(4)], [])
    nodes, todo = 0, list(prefix.roots.values())
    while todo:
        nodes, todo = nodes + 1, [*todo[1:], *todo[0].children.values()]
    assert nodes < 2 * (256 + 4)
