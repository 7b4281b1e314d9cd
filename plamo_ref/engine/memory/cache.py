"""Who owns which block and which slot: the memory of all requests, without a single tensor.

Two kinds of room stand side by side under one byte budget (see planner.py): KV blocks of a few
tokens for each attention group, and state slots for Mamba; or they are pages of one arena (see
arena.py). A request has one block table in each attention group and one slot.

Invariant (`check_integrity` audits it): a block or slot has exactly as many owners as holdings that
list it; free + used = all; a table holds a contiguous range of logical blocks that covers every
key the request's next token may see.
Built in notebooks/06_hybrid_cache_manager.ipynb.

A holding can be frozen, and another one can branch off any holding: that is all that prefix.py
needs to keep what was computed and to use it again. Full blocks are shared. What its owner goes on
writing into (the slot, a block that is partly full) is copied: the cache notes the copies, and
whoever runs the next step makes them first, so there are no tensors here.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from plamo_ref.config import LayerKind
from plamo_ref.engine.config import EngineError
from plamo_ref.engine.memory.arena import Arena, Claim
from plamo_ref.engine.memory.holding import FAR, AttentionGroup, BlockTable, Copy, Holding
from plamo_ref.engine.memory.pool import Pool, Rooms
from plamo_ref.engine.memory.table_rows import TableRows


class IntegrityError(EngineError):
    """The audit found memory that is lost, shared by mistake, or missing."""


class HybridCache:
    """Block tables and state slots of the running requests, and of what is frozen.

    `evict`, if somebody has set it, lets something frozen go that has places of a pool.
    """

    def __init__(
        self,
        groups: Iterable[AttentionGroup],
        blocks: Mapping[LayerKind, Pool],
        slots: Pool | None,
        block_size: int,
        arena: Arena | None = None,
    ) -> None:
        self.arena, self._rooms = arena, arena or Rooms()
        self.groups = {group.kind: group for group in groups}
        self.blocks, self.slots, self.block_size = dict(blocks), slots, block_size
        self.holdings: dict[str, Holding] = {}
        self.rows = TableRows(self.groups)
        self.frozen: set[Holding] = set()
        self.exposed: set[Holding] = set()  # to be frozen when the step that writes it is launched
        self.copies: list[Copy] = []  # to be made, in this order, before the next step
        self.evict: Callable[[Pool], None] | None = None
        self.witness: Callable[[], object] | None = None  # what a recorded step says of memory

    @property
    def pools(self) -> list[Pool]:
        """Of every kind of room."""
        return [*self.blocks.values(), *([] if self.slots is None else [self.slots])]

    # --- what the scheduler asks ---------------------------------------------------------------

    def fit(
        self, request_id: str, computed: int, wanted: int, source: Holding | None = None
    ) -> int:
        """How many new tokens, at most `wanted`, there is room for now, behind `computed` ones.

        A newcomer may branch off `source`, which stands at `computed`.
        """
        holding, claims = self.holdings.get(request_id), list[Claim]()
        if holding is None and self.slots is not None:
            claims.append(Claim(self.slots, 1))
            if not self.slots.num_available:
                return 0
        for kind, pool in self.blocks.items():
            available, end, shared, leaving = pool.num_available, 0, list[int](), list[int]()
            if holding is not None:
                end, table = holding.tables[kind].end, holding.tables[kind]
                # Blocks that `allocate` will free first, because they have left the window, count.
                passed = max(0, self.first_needed(kind, computed) - table.first)
                leaving = pool.leaving(table.blocks[:passed])
                available += len(leaving)
            elif source is not None:
                end = computed // self.block_size  # a copy of what is partly filled takes a block
                shared = self._full_blocks(kind, source, computed).blocks
                # What is shared cannot be evicted any more.
                available -= sum(map(pool.is_evictable, shared))
            wanted = min(wanted, (end + available) * self.block_size - computed)
            if self.arena is not None:
                claims.append(Claim(pool, -end, leaving, shared, grows=True))
        if self.arena is not None and wanted > 0:  # pages are for all of them together
            return self.arena.most(claims, wanted, lambda n: self._num_blocks(computed + n))
        return max(0, wanted)

    def allocate(
        self, request_id: str, computed: int, new: int, source: Holding | None = None
    ) -> None:
        """Make room for tokens `computed` to `computed + new - 1`; free what left the window.

        The first call of a request takes its slot, or branches off `source`. Ask `fit` first.

        Raises:
            PoolError: there is not enough room.
        """
        end = self._num_blocks(computed + new)
        if request_id not in self.holdings:
            self.holdings[request_id] = self._branch(source, computed, end)
        holding, size = self.holdings[request_id], self.block_size
        for kind, table in holding.tables.items():
            self._drop_before(kind, table, self.first_needed(kind, computed))
        wants = [(self.blocks[k], end - t.end, t) for k, t in holding.tables.items() if t.end < end]
        self._make_room([(pool, count) for pool, count, _ in wants])
        for pool, count, table in wants:
            table.blocks += pool.take(count)
        holding.calm_until = FAR
        for kind, table in holding.tables.items():
            calm_until = table.calm_until(size, self.groups[kind].window)
            holding.calm_until = min(holding.calm_until, calm_until)

    def release(self, request_id: str) -> None:
        """Give back everything; a request that holds nothing is fine."""
        if (holding := self.holdings.pop(request_id, None)) is not None:
            for pool, places in self._places(holding):
                pool.give_back(places)

    # --- frozen moments ------------------------------------------------------------------------

    def freeze(self, request_id: str, computed: int) -> Holding:
        """What a request has, as it is at `computed`, is nobody's now and waits to be used."""
        holding = self.holdings.pop(request_id)
        for kind, table in holding.tables.items():
            self._drop_before(kind, table, self.first_needed(kind, computed))
        return self._keep(holding)

    def expose(self, request_id: str, position: int, stands_there: bool) -> Holding | None:
        """What a running request has at `position`: its blocks, also a partly filled one (it goes
        on behind `position`), and a slot for its state, into which it is copied if the request
        stands there now; else the next step leaves it there. None: there is no slot.
        """
        if self.slots is not None and not self.slots.num_available:
            return None
        source = self.holdings[request_id]
        tables = {kind: self._full_blocks(kind, source, position) for kind in self.groups}
        for kind, table in tables.items():
            if self._is_partial(position):
                table.blocks.append(self._block_of(kind, source, position))
            self.blocks[kind].share(table.blocks)
        slot = self.take_slot()
        if stands_there and source.slot is not None and slot is not None:
            self.copies.append(Copy("mamba", source.slot, slot))
        holding = Holding(tables, slot)
        self.exposed.add(holding)
        return holding

    def develop(self, holding: Holding) -> None:
        """What was exposed has been written, as far as later steps can see: it is frozen."""
        self.exposed.remove(holding)
        self._keep(holding)

    def let_go(self, holding: Holding) -> None:
        """Free a frozen holding, wherever nobody else has a part in it."""
        self.frozen.remove(holding)
        for pool, places in self._places(holding):
            pool.give_up(places)

    def serves(self, holding: Holding, position: int) -> bool:
        """Whether one can begin at `position` with a frozen holding that stands there or later."""
        tables = holding.tables.items()
        reaches = all(table.first <= self.first_needed(kind, position) for kind, table in tables)
        return self.slots is None and reaches

    def frees(self, holding: Holding, pool: Pool) -> bool:
        """Whether a place of `pool` would be free without this holding, or perhaps a page."""
        if pool is self.slots or (self.arena is not None and self.slots is not None):
            return holding.slot is not None  # slots are never shared
        tables = (holding.tables[kind] for kind, owner in self.blocks.items() if owner is pool)
        return any(pool.is_alone(table.blocks) for table in tables)

    def _keep(self, holding: Holding) -> Holding:
        self.frozen.add(holding)
        for pool, places in self._places(holding):
            pool.freeze(places)
        return holding

    def _branch(self, source: Holding | None, computed: int, end: int) -> Holding:
        """A holding that stands at `computed`, as `source` does, and can go on by itself, to a last
        block before number `end`."""
        tables = {kind: BlockTable() for kind in self.groups}
        if source is not None:  # first, so that nothing of it is evicted on the way
            tables = {kind: self._full_blocks(kind, source, computed) for kind in self.groups}
            for kind, table in tables.items():
                self.blocks[kind].share(table.blocks)
        needs = [(self.blocks[kind], end - table.end) for kind, table in tables.items()]
        slot = self.take_slot(needs)
        if source is not None and slot is not None and source.slot is not None:
            self.copies.append(Copy("mamba", source.slot, slot))
        if source is not None and self._is_partial(computed):
            for kind, table in tables.items():
                last = self._block_of(kind, source, computed)
                table.blocks += self.blocks[kind].take(1)
                self.copies.append(Copy(kind, last, table.blocks[-1]))
        return Holding(tables, slot)

    def _full_blocks(self, kind: LayerKind, holding: Holding, computed: int) -> BlockTable:
        """Those of the blocks seen from `computed` on into which nobody writes any more."""
        table, first = holding.tables[kind], self.first_needed(kind, computed)
        full = computed // self.block_size
        return BlockTable(first, table.blocks[first - table.first : full - table.first])

    def _block_of(self, kind: LayerKind, holding: Holding, position: int) -> int:
        """The block in which the token at `position` is."""
        table = holding.tables[kind]
        return table.blocks[position // self.block_size - table.first]

    def take_slot(self, needs: Sequence[tuple[Pool, int]] = ()) -> int | None:
        """A slot, if there are any, once there is room for what else is needed."""
        self._make_room([*needs, *([] if self.slots is None else [(self.slots, 1)])])
        return None if self.slots is None else self.slots.take(1)[0]

    def _make_room(self, needs: Sequence[tuple[Pool, int]]) -> None:
        """Let what is frozen go, until so many places of each pool are free, as far as it does."""
        while self.evict is not None and (pool := self._rooms.short_of(needs)) is not None:
            self.evict(pool)

    def _places(self, holding: Holding) -> Iterable[tuple[Pool, list[int]]]:
        for kind, table in holding.tables.items():
            yield self.blocks[kind], table.blocks
        if holding.slot is not None and self.slots is not None:
            yield self.slots, [holding.slot]

    def clear(self) -> None:
        """Forget everybody, and make the books of every pool anew."""
        self.holdings.clear()
        self.rows = TableRows(self.groups)
        self.frozen.clear()
        self.exposed.clear()
        self.copies.clear()
        if self.arena is not None:
            self.arena.clear()
        for pool in self.pools:
            pool.clear()

    def longest_request(self) -> float:
        """Tokens that one request alone can reach, computed one at a time; may be infinite."""
        longest = math.inf
        for kind, pool in self.blocks.items():
            window = self.groups[kind].window
            # W + 1 keys, wherever they start in a block; a window that fits goes on for ever.
            enough = math.inf if window is None else self._num_blocks(window + self.block_size)
            if pool.num_assured < enough:
                longest = min(longest, pool.num_assured * self.block_size)
        return longest

    # --- the rule of the window ----------------------------------------------------------------

    def first_needed(self, kind: LayerKind, computed: int) -> int:
        """First logical block that the token at position `computed`, or a later one, can see."""
        window = self.groups[kind].window
        return 0 if window is None else max(0, computed - window) // self.block_size

    def _num_blocks(self, tokens: int) -> int:
        """Blocks that so many tokens fill, the last one perhaps in part."""
        return -(-tokens // self.block_size)

    def _is_partial(self, computed: int) -> bool:
        """Whether the last block has room for more."""
        return computed % self.block_size > 0

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
        wrong = [] if self.arena is None else self.arena.differences()
        listed = self._listed([*self.holdings.values(), *self.frozen, *self.exposed])
        frozen = self._listed(self.frozen)
        wrong += [e for pool in self.pools for e in pool.differences(listed[pool], frozen[pool])]
        if wrong:
            raise IntegrityError("cache: " + "; ".join(wrong))

    def _listed(self, holdings: Iterable[Holding]) -> dict[Pool, Counter[int]]:
        listed = {pool: Counter[int]() for pool in self.pools}
        for holding in holdings:
            for pool, places in self._places(holding):
                listed[pool].update(places)
        return listed
