"""What lessons 05 and 06 lend acts as the package does.

Invariant tested: rows come from where the table says; places go back before others are taken.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from plamo_ref.engine.memory.cache import AttentionGroup, HybridCache
from plamo_ref.engine.memory.pool import Pool, PoolError
from plamo_ref.kernels.attention.twin import gather_paged
from plamo_ref.teaching.mechanisms.hybrid_cache_manager import SLIPS, Held, allocate
from plamo_ref.teaching.mechanisms.paged_attention import gather
from plamo_ref.teaching.mutants import mutant


def test_gather_is_the_packages():
    draw = np.random.default_rng(1)
    memory, tables = draw.standard_normal((9, 3, 2, 5)), draw.integers(0, 9, (4, 3))
    theirs = gather_paged(torch.from_numpy(memory), torch.from_numpy(tables)).numpy()
    assert np.array_equal(gather(memory, tables), theirs)
    assert np.array_equal(gather(memory, tables[2]), theirs[2])


@dataclass
class Rooms:
    blocks: Pool
    slots: Pool
    block_size: int
    window: int
    held: dict[str, Held] = field(default_factory=dict)


@pytest.mark.parametrize(("size", "window"), [(1, 4), (2, 4), (3, 5), (4, 1)])
def test_allocate_hands_out_the_places_of_the_package(size, window):
    draw = random.Random(size)
    rooms = Rooms(Pool("block", 60), Pool("slot", 4), size, window)
    group = AttentionGroup("sliding_window", window=window)
    cache = HybridCache([group], {"sliding_window": Pool("block", 60)}, Pool("slot", 4), size)
    computed = Counter()
    for _ in range(80):
        name, new = draw.choice("ABC"), draw.randint(1, 7)
        allocate(rooms, name, computed[name], new)
        cache.allocate(name, computed[name], new)
        computed[name] += new
        ours, theirs = rooms.held[name], cache.holdings[name]
        table = theirs.tables["sliding_window"]
        assert (ours.slot, ours.first, ours.blocks) == (theirs.slot, table.first, table.blocks)
    cache.check_integrity()
    with pytest.raises(PoolError, match="slot: 1 wanted, 0 free"):
        allocate(rooms, "D", 0, 1)
    assert "D" not in rooms.held


def test_a_mutant_is_ours_with_other_words():
    memory, table = np.arange(4).reshape(4, 1, 1, 1), np.array([2])
    assert mutant(gather, "[table]", "[table + 1]")(memory, table) == gather(memory, table) + 1
    with pytest.raises(ValueError, match="gather has no 'tabel'"):
        mutant(gather, "tabel", "table")


@pytest.mark.parametrize("words", SLIPS.values())
def test_each_slip_of_allocate_can_be_made(words):
    assert mutant(allocate, *words) is not allocate
