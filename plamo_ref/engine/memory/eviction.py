"""Which frozen moment goes when somebody needs its memory.

First those that are superseded: exactly one text goes on from here, and a later moment of it is
kept, or will be: somebody runs who has begun. Whoever comes back to that text comes back to the
later one. A second text that parts here makes it a junction, and saves it; so does who waits, and
has not begun; so does a border behind which others are expected, as behind instructions.

Then the one with the lowest number: what it saves in computing for the bytes that it alone owns,
added, whenever it is used, to the number of the last one that went. So what is worth much stays
longer, and what nobody uses goes all the same (GreedyDual-Size: Cao and Irani, 1997).

Invariant: a decision looks at a fixed number of moments, however many are kept; it only compares:
nothing here changes a tree or owns memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import chain, islice
from typing import NamedTuple

from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.holding import Holding
from plamo_ref.engine.memory.pool import Pool
from plamo_ref.engine.memory.radix import Node
from plamo_ref.engine.request import Request

LOOKED_AT = 16  # how many of the first


@dataclass(eq=False, slots=True)
class Checkpoint:
    """A frozen holding at one exact position of a text."""

    node: Node["Checkpoint"]
    holding: Holding

    @property
    def position(self) -> int:
        return self.node.position

    @property
    def saved(self) -> int:
        """Tokens that would have to be computed again without it."""
        return self.position - above(self.node).position


class Photograph(NamedTuple):
    """A checkpoint that is being taken of a running request."""

    request: Request
    node: Node[Checkpoint]
    holding: Holding


class LeastRecentlyUsed:
    """All that is kept; whatever was used longest ago goes. It knows nothing of what it keeps."""

    def __init__(self, cache: HybridCache) -> None:
        self._cache = cache
        self.kept: dict[Checkpoint, None] = {}  # the one used longest ago first

    def use(self, checkpoint: Checkpoint) -> None:
        """It is kept, and was wanted just now."""
        self.kept.pop(checkpoint, None)
        self.kept[checkpoint] = None

    def discard(self, checkpoint: Checkpoint) -> None:
        """It has gone."""
        del self.kept[checkpoint]

    def clear(self) -> None:
        """All have gone."""
        self.kept.clear()

    @property
    def has_superseded(self) -> bool:
        """Whether something can go that nobody will miss."""
        return False

    def review(self, node: Node[Checkpoint]) -> None:
        """Something has changed here, and so below every node on the way to the root."""

    def least(self, pool: Pool) -> Checkpoint:
        """The one to go, of those without which a place of this pool would be free.

        Where each place has several frozen owners, none is: then some of them go, one by one.
        """
        return next(self._frees(self.kept, pool), next(iter(self.kept)))

    def _frees(self, kept: Iterable[Checkpoint], pool: Pool) -> Iterator[Checkpoint]:
        first = islice(kept, LOOKED_AT)
        return (each for each in first if self._cache.frees(each.holding, pool))


class SupersededFirst(LeastRecentlyUsed):
    """First what is superseded, then what has the lowest number."""

    def __init__(self, cache: HybridCache) -> None:
        super().__init__(cache)
        self.superseded: dict[Checkpoint, None] = {}  # the one that was so first
        self._bases: dict[Checkpoint, float] = {}  # `_last`, when it was used last
        self._entries: dict[Checkpoint, _Entry] = {}
        self._lowest: list[_Entry] = []  # a heap of them, and of some that are none any more
        self._last = 0.0  # number of the last one that went
        self._uses = 0

    @property
    def has_superseded(self) -> bool:
        return bool(self.superseded)

    def use(self, checkpoint: Checkpoint) -> None:
        super().use(checkpoint)
        self._bases[checkpoint] = self._last
        self._push(checkpoint)
        if len(self._lowest) > 2 * len(self.kept) + LOOKED_AT:
            self._lowest = list(self._entries.values())
            heapify(self._lowest)

    def discard(self, checkpoint: Checkpoint) -> None:
        super().discard(checkpoint)
        self.superseded.pop(checkpoint, None)
        del self._entries[checkpoint], self._bases[checkpoint]

    def clear(self) -> None:
        super().clear()
        for known in (self.superseded, self._bases, self._entries, self._lowest):
            known.clear()

    def review(self, node: Node[Checkpoint]) -> None:
        kept = [each.kept for each in node.path() if each.kept is not None]
        for checkpoint in reversed(kept):  # earlier moments go before later ones
            if is_superseded(checkpoint.node):
                self.superseded.setdefault(checkpoint)
            else:
                self.superseded.pop(checkpoint, None)

    def least(self, pool: Pool) -> Checkpoint:
        for checkpoint in self._frees(self.superseded, pool):
            return checkpoint
        looked_at, found = list[_Entry](), None
        while found is None and len(looked_at) < LOOKED_AT and (entry := self._pop()) is not None:
            looked_at.append(entry)
            found = entry if self._cache.frees(entry[2].holding, pool) else None
        for entry in looked_at:
            heappush(self._lowest, entry)
        if found is None:
            return next(chain(self.superseded, self.kept))
        self._last = found[0]
        return found[2]

    def _push(self, checkpoint: Checkpoint) -> None:
        self._uses += 1
        self._entries[checkpoint] = entry = self._number(checkpoint), self._uses, checkpoint
        heappush(self._lowest, entry)

    def _pop(self) -> "_Entry | None":
        """The lowest as they are now: what one saves grows when one before it goes."""
        while self._lowest:
            entry = heappop(self._lowest)
            number, _, checkpoint = entry
            if self._entries.get(checkpoint) is not entry:
                continue  # it has gone, or was used since
            if self._number(checkpoint) <= number:
                return entry
            self._push(checkpoint)
        return None

    def _number(self, checkpoint: Checkpoint) -> float:
        saved = checkpoint.saved
        return self._bases[checkpoint] + saved / max(1, own_bytes(saved, self._cache))


_Entry = tuple[float, int, Checkpoint]  # its number, when it was pushed, whose it is


def is_superseded(node: Node[Checkpoint]) -> bool:
    """Whether all who come by here will find a later moment, kept by then at the latest."""
    if node.num_marks or node.is_border or node.num_live > node.num_begun:
        return False
    return node.num_ways == 1


def own_bytes(saved: int, cache: HybridCache) -> int:
    """About what would be free without a checkpoint: its slot, and the blocks of what it saves."""
    size = 0 if cache.slots is None else cache.slots.place_bytes
    for kind, pool in cache.blocks.items():
        window = cache.groups[kind].window
        tokens = saved if window is None else min(saved, window)
        size += -(-tokens // cache.block_size) * pool.place_bytes
    return size


def above(node: Node[Checkpoint]) -> Node[Checkpoint]:
    """The nearest node above at which something is kept; the root, if there is none."""
    while node.parent is not None:
        node = node.parent
        if node.kept is not None:
            break
    return node
