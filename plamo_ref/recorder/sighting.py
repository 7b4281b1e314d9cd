"""What is seen of queue and memory when a step is launched, beside its numbers.

Invariant: it is taken from the books and changes nothing; what has not changed since the last look
is not said again, so a look costs a comparison for each request of the step.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from plamo_ref.engine.memory.eviction import Checkpoint
from plamo_ref.engine.memory.holding import Holding
from plamo_ref.engine.memory.radix import Node

if TYPE_CHECKING:
    from plamo_ref.engine.core import EngineCore

MOST_NODES = 200  # of the tree of texts; a larger one is cut off, from the deepest


class Grown(msgspec.Struct, frozen=True, array_like=True):
    """How a block table has changed: it loses blocks at its front and gets new ones at its end."""

    first: int  # logical number of its first block
    end: int  # logical number of the first of `added`
    added: tuple[int, ...]


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """A node of the tree of texts; with blocks and a slot if its moment is kept."""

    parent: int  # its place in the list; -1: it is a root
    position: int  # tokens from the root to here
    blocks: dict[str, tuple[int, ...]]
    slot: int | None
    is_kept: bool


class Sighting(msgspec.Struct, frozen=True, omit_defaults=True):
    """Queue and memory of one step, as far as they are others than in the step before."""

    waiting: tuple[str, ...]  # the next one first
    running: tuple[str, ...]  # the oldest first
    tables: dict[str, dict[str, Grown]] = {}
    slots: dict[str, int] = {}
    gone: tuple[str, ...] = ()  # hold nothing any more
    tree: tuple[Kept, ...] | None = None  # None: as before


class Witness:
    """Looks at one engine, again and again."""

    def __init__(self, core: "EngineCore") -> None:
        self._queues, self._cache = core.queues, core.cache
        self._known: dict[str, tuple[Holding, dict[str, tuple[int, int]]]] = {}
        self._tree: tuple[Kept, ...] | None = ()

    def look(self) -> Sighting:
        """Called when a step has its memory, before anybody gives some back."""
        holdings = self._cache.holdings
        gone = tuple(name for name in self._known if name not in holdings)
        for name in gone:
            del self._known[name]
        tables, slots = dict[str, dict[str, Grown]](), dict[str, int]()
        for name, holding in holdings.items():
            if name not in self._known or self._known[name][0] is not holding:
                self._known[name] = holding, {}
                if holding.slot is not None:
                    slots[name] = holding.slot
            if changes := self._changes(name, holding):
                tables[name] = changes
        known = tuple(self._nodes()) if self._queues.prefix.enabled else ()
        tree, self._tree = (None if known == self._tree else known), known
        waiting, running = (
            tuple(r.request_id for r in q) for q in (self._queues.waiting, self._queues.running)
        )
        return Sighting(waiting, running, tables, slots, gone, tree)

    def _changes(self, name: str, holding: Holding) -> dict[str, Grown]:
        """Of one request's tables since the last look."""
        ends, changes = self._known[name][1], dict[str, Grown]()
        for kind, table in holding.tables.items():
            now = table.first, table.end
            if ends.get(kind) != now:
                end = max(ends[kind][1], table.first) if kind in ends else table.first
                added = tuple(table.blocks[end - table.first :])
                changes[kind], ends[kind] = Grown(table.first, end, added), now
        return changes

    def _nodes(self) -> Iterator[Kept]:
        """The trees of all salts, parents first."""
        queue: list[tuple[int, Node[Checkpoint]]] = []
        queue += [(-1, root) for root in self._queues.prefix.roots.values()]
        for place, (parent, node) in enumerate(queue):
            if place == MOST_NODES:
                return
            queue += [(place, child) for child in node.children.values()]
            yield _kept(parent, node)


def _kept(parent: int, node: Node[Checkpoint]) -> Kept:
    if node.kept is None:
        return Kept(parent, node.position, {}, None, False)
    holding = node.kept.holding
    blocks: dict[str, tuple[int, ...]] = {k: tuple(t.blocks) for k, t in holding.tables.items()}
    return Kept(parent, node.position, blocks, holding.slot, True)
