"""Who owns which block and which slot: the memory of all requests, without a single tensor.

Two kinds of room stand side by side under one byte budget (see planner.py): KV blocks of a few
tokens for each attention group, and state slots for Mamba. A request has one block table in each
attention group and one slot.

Invariant (`check_integrity` audits it): a block or slot has exactly as many owners as tables that
list it; free + used = all; a table holds a contiguous range of logical blocks that covers every
key the request's next token may see.
Built in notebooks/06_hybrid_cache_manager.ipynb.

Where the future plugs in. Prefix reuse: full blocks get a key (hash of all tokens up to their end),
slots copied at chosen positions likewise; `release` then hands keyed places to an evictable list
in `Pool` instead of freeing them, and `open` starts a request with tables found by key: the
longest prefix for which every attention group has its blocks and Mamba has a checkpoint. One arena
for both kinds: `Pool.take` asks a common page pool for a page, which is one slot or as many blocks
as fit it; nothing here changes, because places are only numbers.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from plamo_ref.config import LayerKind
from plamo_ref.engine.config import EngineError
from plamo_ref.engine.memory.pool import Pool


class IntegrityError(EngineError):
    """The audit found memory that is lost, shared by mistake, or missing."""


@dataclass(frozen=True)
class AttentionGroup:
    """The memory rule of one group of layers."""

    kind: LayerKind
    window: int | None  # W: the last W computed tokens stay visible; None: all


@dataclass
class BlockTable:
    """Physical blocks of consecutive logical blocks, the first of which is number `first`."""

    first: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Logical number after the last block."""
        return self.first + len(self.blocks)


@dataclass
class Holding:
    """All that one request has."""

    tables: dict[LayerKind, BlockTable]
    slot: int | None


class HybridCache:
    """Block tables and state slots of the running requests."""

    def __init__(
        self,
        groups: Iterable[AttentionGroup],
        blocks: Mapping[LayerKind, Pool],
        slots: Pool | None,
        block_size: int,
    ) -> None:
        self.groups = {group.kind: group for group in groups}
        self.blocks, self.slots, self.block_size = dict(blocks), slots, block_size
        self.holdings: dict[str, Holding] = {}

    # --- what the scheduler asks ---------------------------------------------------------------

    def fit(self, request_id: str, computed: int, wanted: int) -> int:
        """How many new tokens, at most `wanted`, there is room for now, behind `computed` ones."""
        holding = self.holdings.get(request_id)
        if holding is None and self.slots is not None and not self.slots.num_free:
            return 0
        for kind, pool in self.blocks.items():
            table = BlockTable() if holding is None else holding.tables[kind]
            room = table.end * self.block_size - computed  # in the blocks it has already
            if room < wanted:
                # Blocks that `allocate` will free first, because they have left the window, count.
                leaving = max(0, self._first_needed(kind, computed) - table.first)
                wanted = min(wanted, room + (pool.num_free + leaving) * self.block_size)
        return max(0, wanted)

    def allocate(self, request_id: str, computed: int, new: int) -> None:
        """Make room for tokens `computed` to `computed + new - 1`; free what left the window.

        The first call of a request takes its slot. Ask `fit` first.

        Raises:
            PoolError: there is not enough room.
        """
        if request_id not in self.holdings:
            slot = self.slots.take(1)[0] if self.slots is not None else None
            tables = {kind: BlockTable() for kind in self.groups}
            self.holdings[request_id] = Holding(tables, slot)
        for kind, table in self.holdings[request_id].tables.items():
            self._drop_before(kind, table, self._first_needed(kind, computed))
            missing = -(-(computed + new) // self.block_size) - table.end  # rounded up
            if missing > 0:
                table.blocks += self.blocks[kind].take(missing)

    def release(self, request_id: str) -> None:
        """Give back everything; a request that holds nothing is fine."""
        holding = self.holdings.pop(request_id, None)
        if holding is None:
            return
        for kind, table in holding.tables.items():
            self.blocks[kind].give_back(table.blocks)
        if holding.slot is not None and self.slots is not None:
            self.slots.give_back([holding.slot])

    def clear(self) -> None:
        """Forget everybody, and make the books of every pool anew."""
        self.holdings.clear()
        for pool in (*self.blocks.values(), *([] if self.slots is None else [self.slots])):
            pool.clear()

    def longest_request(self) -> float:
        """Tokens that one request alone can reach, computed one at a time; may be infinite."""
        longest = math.inf
        for kind, pool in self.blocks.items():
            window = self.groups[kind].window
            if window is not None and pool.capacity * self.block_size >= self._window_span(window):
                continue  # a window that fits goes on for ever
            longest = min(longest, pool.capacity * self.block_size)
        return longest

    # --- the rule of the window ----------------------------------------------------------------

    def _first_needed(self, kind: LayerKind, computed: int) -> int:
        """First logical block that the token at position `computed`, or a later one, can see."""
        window = self.groups[kind].window
        return 0 if window is None else max(0, computed - window) // self.block_size

    def _window_span(self, window: int) -> int:
        """Tokens' room for W + 1 keys wherever they start in a block."""
        return math.ceil((window + self.block_size) / self.block_size) * self.block_size

    def _drop_before(self, kind: LayerKind, table: BlockTable, first: int) -> None:
        # Never the last block: `first` is at most the block of the newest computed token.
        leaving = first - table.first
        if leaving > 0:
            self.blocks[kind].give_back(table.blocks[:leaving])
            del table.blocks[:leaving]
            table.first = first

    # --- the audit -----------------------------------------------------------------------------

    def check_integrity(self) -> None:
        """Compare every pool with the tables.

        Raises:
            IntegrityError: with each place that is wrong, and how.
        """
        wrong: list[str] = []
        for kind, pool in self.blocks.items():
            listed = Counter(
                place for held in self.holdings.values() for place in held.tables[kind].blocks
            )
            wrong += _audit(pool, listed)
        if self.slots is not None:
            slots = [held.slot for held in self.holdings.values() if held.slot is not None]
            wrong += _audit(self.slots, Counter(slots))
        if wrong:
            raise IntegrityError("cache: " + "; ".join(wrong))

    def check_covers(self, request_id: str, computed: int) -> None:
        """Check that what the next token of a request can see is still there.

        Raises:
            IntegrityError: a block is missing or lies outside its table.
        """
        for kind, table in self.holdings[request_id].tables.items():
            needed = self._first_needed(kind, computed)
            if table.first > needed or table.end * self.block_size < computed:
                raise IntegrityError(
                    f"request {request_id}, group {kind}: blocks {table.first} to {table.end - 1} "
                    f"do not cover tokens from block {needed} to token {computed - 1}"
                )


def _audit(pool: Pool, listed: Counter[int]) -> list[str]:
    """Differences between a pool's books and the places that tables list."""
    owners, free = pool.owners(), Counter(pool.free_places())
    wrong = []
    for place in range(1, pool.size):
        count = f"{pool.name} {place} has {owners[place]} owners"
        if owners[place] != listed[place]:
            wrong.append(f"{count}, tables list it {listed[place]} times")
        if free[place] != (owners[place] == 0):
            wrong.append(f"{count}, the free list has it {free[place]} times")
    if listed[0] or free[0]:
        wrong.append(f"{pool.name} 0, the null place, is in use")
    return wrong
