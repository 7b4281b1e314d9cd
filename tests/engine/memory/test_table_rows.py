"""Block tables side by side.

Invariant tested: whoever comes, computes, leaves and comes back, the rows of a step say what its
tables say, padding included.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cache import FULL, SLIDING, new_cache

from plamo_ref.engine.memory.table_rows import GroupRows

REQUESTS = "abcdefg"


@st.composite
def steps(draw) -> list[dict[str, int]]:
    """Each step: who is in it, and how many tokens of each; 0: who leaves before it."""
    step = st.dictionaries(st.sampled_from(REQUESTS), st.sampled_from([0, 1, 1, 1, 1, 7]))
    return draw(st.lists(step, min_size=1, max_size=25))


@given(window=st.integers(1, 12), size=st.integers(1, 5), told=steps())
@settings(max_examples=150)
def test_rows_say_what_the_tables_say(window, size, told):
    cache = new_cache(window=window, size=size, full=2000, sliding=2000, slots=len(REQUESTS))
    computed: dict[str, int] = {}
    for step in told:
        for name in [name for name, tokens in step.items() if not tokens and name in computed]:
            cache.release(name)
            del computed[name]
        step = {name: tokens for name, tokens in step.items() if tokens}
        if not step:
            continue
        pasts = {name: computed.get(name, 0) for name in step}
        for name, tokens in step.items():
            holding = cache.holdings.get(name)
            if holding is None or tokens > 1 or pasts[name] >= holding.calm_until:
                cache.allocate(name, pasts[name], tokens)
            computed[name] = pasts[name] + tokens
        holdings = [cache.holdings[name] for name in step]
        rows = cache.rows.find(holdings, np.array([*pasts.values()]), np.array([*step.values()]))
        assert len(set(rows.tolist())) == len(rows)
        for row, holding in zip(rows.tolist(), holdings, strict=True):
            for kind in (FULL, SLIDING):
                group, table = cache.rows.groups[kind], holding.tables[kind]
                length = len(table.blocks)
                assert (group.lengths[row], group.first[row]) == (length, table.first)
                assert group.blocks[row, :length].tolist() == table.blocks
                assert not group.blocks[row, length:].any()


def test_rows_are_few_however_many_have_come_and_gone():
    cache = new_cache(slots=3)
    for number in range(500):
        names = [str(number), str(number + 1)]
        for name in names:
            if name not in cache.holdings:
                cache.allocate(name, 0, 3)
        holdings = [cache.holdings[name] for name in names]
        cache.rows.find(holdings, np.zeros(2, dtype=np.int64), np.array([3, 3]))
        cache.release(names[0])
    assert len(cache.rows.groups[FULL].blocks) == 4


def test_what_an_interrupt_leaves_half_done_is_forgotten_with_all_else(monkeypatch):
    """It comes while room is made for more rows: some of it is larger already, the rest is not."""
    cache = new_cache(slots=9, full=99, sliding=99)

    def find(names: str) -> None:
        for name in names:
            cache.allocate(name, 0, 3)
        holdings, counts = [cache.holdings[name] for name in names], np.full(len(names), 3)
        rows = cache.rows.find(holdings, 0 * counts, counts)
        assert (cache.rows.groups[FULL].lengths[rows] == 1).all()

    find("a")
    cleared = []

    def interrupted(group: GroupRows, rows: int) -> None:
        cleared.append(group)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(GroupRows, "clear", interrupted)
        with pytest.raises(KeyboardInterrupt):
            find("bcdefg")
    assert cleared
    cache.clear()
    find("abcd")
