"""Who owns which block and which slot.

Invariant tested: a request holds exactly the blocks that its next token can see, whatever the
window, the block size and the chunks; its memory is constant where every layer slides.
"""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo_ref.engine.memory.cache import HybridCache, IntegrityError
from plamo_ref.engine.memory.holding import AttentionGroup
from plamo_ref.engine.memory.pool import Pool, PoolError
from plamo_ref.proof.audits import check_covers

FULL, SLIDING = "full", "sliding_window"


def new_cache(
    *, window: int | None = 6, full: int = 20, sliding: int = 20, slots: int = 3, size: int = 4
) -> HybridCache:
    """`window=None`: no windowed group; `full=0`: no full group; `slots=0`: no Mamba."""
    groups, blocks = [], {}
    if window is not None:
        groups.append(AttentionGroup(SLIDING, window))
        blocks[SLIDING] = Pool("sliding block", sliding + 1)
    if full:
        groups.append(AttentionGroup(FULL, None))
        blocks[FULL] = Pool("full block", full + 1)
    return HybridCache(groups, blocks, Pool("slot", slots + 1) if slots else None, size)


def used(cache: HybridCache) -> dict[str, int]:
    return {kind: pool.num_used for kind, pool in cache.blocks.items()}


@given(
    window=st.integers(1, 12),
    size=st.integers(1, 5),
    chunks=st.lists(st.integers(1, 15), min_size=1, max_size=12),
)
def test_a_table_lists_what_the_chunk_can_see_and_no_more(window, size, chunks):
    cache = new_cache(window=window, size=size, full=200, sliding=200)
    computed = 0
    for chunk in chunks:
        cache.allocate("a", computed, chunk)
        first_key = max(0, computed - window)  # the first query's first key
        blocks = {position // size for position in range(first_key, computed + chunk)}
        tables = cache.holdings["a"].tables
        assert tables[SLIDING].first == min(blocks)
        assert len(tables[SLIDING].blocks) == len(blocks)
        assert (tables[FULL].first, tables[FULL].end) == (0, math.ceil((computed + chunk) / size))
        cache.check_integrity()
        computed += chunk
        check_covers(cache, "a", computed)
    cache.release("a")
    cache.check_integrity()
    assert set(used(cache).values()) == {0}


@given(
    window=st.integers(1, 9),
    size=st.integers(1, 5),
    sliding=st.integers(1, 12),
    full=st.integers(1, 12),
    computed=st.integers(0, 12),
    wanted=st.integers(1, 40),
)
def test_what_fits_can_be_allocated_and_one_more_cannot(
    window, size, sliding, full, computed, wanted
):
    cache = new_cache(window=window, size=size, sliding=sliding, full=full)
    done = 0
    while done < computed and cache.fit("a", done, 1):
        cache.allocate("a", done, 1)
        done += 1
    fitting = cache.fit("a", done, wanted)
    assert 0 <= fitting <= wanted
    if fitting < wanted:
        with pytest.raises(PoolError):
            cache.allocate("a", done, fitting + 1)
        return
    cache.allocate("a", done, fitting)
    cache.check_integrity()


def test_who_branches_off_a_moment_shares_full_blocks_and_needs_one_for_the_rest():
    cache = new_cache(window=None, full=4, slots=2)
    cache.allocate("a", 0, 6)
    source = cache.freeze("a", 6)
    cache.evict = lambda pool: cache.let_go(source)
    assert cache.fit("b", 6, 40, source) == 10  # one of four blocks is shared: 16 tokens less 6
    cache.allocate("b", 6, 10, source)
    cache.check_integrity()
    assert used(cache) == {FULL: 4}


@given(window=st.integers(1, 9), size=st.integers(1, 5), sliding=st.integers(1, 12))
def test_the_longest_request_is_reached_alone_one_token_at_a_time(window, size, sliding):
    cache = new_cache(window=window, size=size, sliding=sliding, full=0)
    longest = cache.longest_request()
    reached = 0
    while reached < min(longest, 100) and cache.fit("a", reached, 1):
        cache.allocate("a", reached, 1)
        reached += 1
    assert reached == min(longest, 100)
    for start in range(size):  # W + 1 keys, wherever they start in a block
        if longest == math.inf:
            assert len({(start + i) // size for i in range(window + 1)}) <= sliding


@pytest.mark.parametrize("length", [1_000, 10_000, 100_000])
def test_a_windowed_request_needs_constant_memory_however_long_it_is(length):
    window, size = 64, 16
    cache = new_cache(window=window, size=size, sliding=40, full=0)
    span = math.ceil((window + size) / size)  # blocks of W + 1 keys
    computed = most = 0
    while computed < length:
        chunk = 256 if computed < length // 2 else 1 + computed % 3  # a prompt, then decoding
        assert cache.fit("a", computed, chunk) == chunk
        cache.allocate("a", computed, chunk)
        computed += chunk
        if chunk < 4:
            most = max(most, used(cache)[SLIDING])
    assert most <= span + 1  # chunks of up to 3 tokens may begin one block more
    assert cache.longest_request() == math.inf


def test_blocks_leave_the_window_during_prefill_and_can_be_used_again():
    cache = new_cache(window=6, size=2, sliding=8, full=0)  # 16 tokens' room
    cache.allocate("a", 0, 10)
    before = list(cache.holdings["a"].tables[SLIDING].blocks)
    assert cache.fit("a", 10, 99) == 10  # two blocks leave first, three are free
    cache.allocate("a", 10, 10)
    table = cache.holdings["a"].tables[SLIDING]
    assert (table.first, table.end) == (2, 10)
    assert set(before[:2]) <= set(table.blocks)  # used again at once
    cache.check_integrity()


def test_the_last_windowed_key_is_w_tokens_away():
    """Token 9 sees 3 … 9 with W = 6; with blocks of one token that is exactly seven of them."""
    cache = new_cache(window=6, size=1, full=0)
    for computed in range(10):
        cache.allocate("a", computed, 1)
    table = cache.holdings["a"].tables[SLIDING]
    assert (table.first, table.end) == (3, 10)


def test_the_first_allocation_takes_a_slot_and_nobody_fits_without_one():
    cache = new_cache(slots=2)
    cache.allocate("a", 0, 1)
    cache.allocate("b", 0, 1)
    assert cache.holdings["a"].slot != cache.holdings["b"].slot
    assert cache.fit("c", 0, 5) == 0
    assert cache.fit("a", 1, 5) == 5
    cache.release("b")
    assert cache.fit("c", 0, 5) == 5


def test_without_attention_only_slots_count():
    cache = HybridCache((), {}, Pool("slot", 3), 16)
    assert cache.fit("a", 0, 10**6) == 10**6
    cache.allocate("a", 0, 10**6)
    assert cache.longest_request() == math.inf
    cache.check_integrity()


def test_without_mamba_there_are_no_slots():
    cache = new_cache(slots=0)
    cache.allocate("a", 0, 5)
    assert cache.holdings["a"].slot is None
    cache.check_integrity()


def test_release_of_nothing_is_fine_and_twice_is_too():
    cache = new_cache()
    cache.release("nobody")
    cache.allocate("a", 0, 9)
    cache.release("a")
    cache.release("a")
    cache.check_integrity()
    assert used(cache) == {FULL: 0, SLIDING: 0}


# --- the audit is tested too --------------------------------------------------------------------


@pytest.fixture
def audited() -> HybridCache:
    cache = new_cache()
    cache.allocate("a", 0, 9)
    cache.allocate("b", 0, 5)
    cache.check_integrity()
    return cache


def test_the_audit_sees_a_lost_block(audited):
    lost = audited.holdings["a"].tables[FULL].blocks.pop()
    with pytest.raises(IntegrityError, match=rf"full block {lost} has 1 owners, tables list it 0"):
        audited.check_integrity()


def test_the_audit_sees_a_shared_block(audited):
    tables = [audited.holdings[name].tables[SLIDING].blocks for name in "ab"]
    tables[0][0] = tables[1][0]
    with pytest.raises(IntegrityError, match="has 1 owners, tables list it 2 times"):
        audited.check_integrity()


def test_the_audit_sees_a_block_that_was_freed_but_is_still_listed(audited):
    block = audited.holdings["a"].tables[FULL].blocks[0]
    audited.blocks[FULL].give_back([block])
    with pytest.raises(IntegrityError, match=rf"full block {block} has 0 owners, tables list it 1"):
        audited.check_integrity()


def test_the_audit_sees_a_lost_and_a_shared_slot(audited):
    audited.holdings["a"].slot = audited.holdings["b"].slot
    with pytest.raises(IntegrityError) as caught:
        audited.check_integrity()
    assert "slot 1 has 1 owners, tables list it 0 times" in str(caught.value)
    assert "slot 2 has 1 owners, tables list it 2 times" in str(caught.value)


def test_the_audit_sees_the_null_place_in_use(audited):
    audited.holdings["a"].tables[FULL].blocks[0] = 0
    with pytest.raises(IntegrityError, match="full block 0, the null place, is in use"):
        audited.check_integrity()


def test_the_audit_sees_a_window_that_lost_a_block(audited):
    table = audited.holdings["a"].tables[SLIDING]
    check_covers(audited, "a", 9)
    table.first, gone = table.first + 1, table.blocks.pop(0)
    audited.blocks[SLIDING].give_back([gone])
    audited.check_integrity()  # the books are in order
    with pytest.raises(IntegrityError, match="request a, group sliding_window: blocks 1 to 2"):
        check_covers(audited, "a", 9)


def test_the_audit_sees_a_table_that_ends_too_early(audited):
    with pytest.raises(IntegrityError, match="do not cover"):
        check_covers(audited, "a", 13)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=30))
def test_any_sequence_of_moves_keeps_the_books_in_order(moves):
    """Zero tokens: the request leaves."""
    cache, computed = new_cache(full=6, sliding=6, slots=2), dict.fromkeys("abc", 0)
    for name, tokens in moves:
        fitting = cache.fit(name, computed[name], tokens) if tokens else 0
        if fitting:
            cache.allocate(name, computed[name], fitting)
            computed[name] += fitting
            check_covers(cache, name, computed[name])
        else:
            cache.release(name)
            computed[name] = 0
        cache.check_integrity()
        assert set(cache.holdings) == {name for name, tokens in computed.items() if tokens}
