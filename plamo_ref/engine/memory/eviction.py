"""Which frozen moment goes when somebody needs its memory.

First those that are superseded: exactly one text goes on from here, and a later moment of it is
kept, or will be: somebody runs who has begun. Whoever comes back to that text comes back to the
later one. A second text that parts here makes it a junction, and saves it; so does who waits, and
has not begun. Then, of the few that nobody has used for longest, the one that
saves the least computing for the bytes that it alone owns.

Invariant: a decision looks at a fixed number of moments, however many are kept; it only compares:
nothing here changes a tree or owns memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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

    def review(self, path: Iterable[Node[Checkpoint]]) -> None:
        """Something has changed below these nodes, the lowest of which comes first."""

    def least(self, pool: Pool) -> Checkpoint:
        """The one to go, of those without which a place of this pool would be free.

        Where each place has several frozen owners, none is: then some of them go, one by one.
        """
        return next(self._frees(self.kept, pool), next(iter(self.kept)))

    def _frees(self, kept: Iterable[Checkpoint], pool: Pool) -> Iterator[Checkpoint]:
        first = islice(kept, LOOKED_AT)
        return (each for each in first if self._cache.frees(each.holding, pool))


class SupersededFirst(LeastRecentlyUsed):
    """First what is superseded, then what saves least of the few that were used longest ago."""

    def __init__(self, cache: HybridCache) -> None:
        super().__init__(cache)
        self.superseded: dict[Checkpoint, None] = {}  # the one that was so first

    @property
    def has_superseded(self) -> bool:
        return bool(self.superseded)

    def discard(self, checkpoint: Checkpoint) -> None:
        super().discard(checkpoint)
        self.superseded.pop(checkpoint, None)

    def clear(self) -> None:
        super().clear()
        self.superseded.clear()

    def review(self, path: Iterable[Node[Checkpoint]]) -> None:
        kept = [node.kept for node in path if node.kept is not None]
        for checkpoint in reversed(kept):  # earlier moments go before later ones
            if is_superseded(checkpoint.node):
                self.superseded.setdefault(checkpoint)
            else:
                self.superseded.pop(checkpoint, None)

    def least(self, pool: Pool) -> Checkpoint:
        for checkpoint in self._frees(self.superseded, pool):
            return checkpoint
        oldest = list(self._frees(self.kept, pool))
        if oldest:
            return min(oldest, key=self._worth)
        return next(chain(self.superseded, self.kept))

    def _worth(self, checkpoint: Checkpoint) -> float:
        saved = checkpoint.saved
        return saved / max(1, own_bytes(saved, self._cache))


def is_superseded(node: Node[Checkpoint]) -> bool:
    """Whether all who come by here will find a later moment, kept by then at the latest."""
    if node.num_marks or node.num_live > node.num_begun:
        return False
    going_on = node.continuations()
    return len(going_on) == 1


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
