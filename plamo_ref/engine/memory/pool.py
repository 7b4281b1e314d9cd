"""Numbered places of equal size (KV blocks, state slots), handed out and taken back.

Invariant: place 0 is never handed out (padding reads and writes it); every other place is either
free or has at least one owner. Reference counts allow several owners: that is where prefix reuse
plugs in, by keeping a place with a content hash in a second, evictable list instead of freeing it.
Built in notebooks/05_paged_attention.ipynb.
"""

from collections.abc import Iterable

from plamo_ref.engine.config import EngineError

NULL_PLACE = 0


class PoolError(EngineError):
    """A place was taken or given back against the rules: a bug in the caller."""


class Pool:
    """`size` places, of which `size - 1` can be used."""

    def __init__(self, name: str, size: int) -> None:
        if size < 2:
            raise EngineError(
                f"{name}: room for {size} places; one is reserved, so 2 are the least"
            )
        self.name, self.size = name, size
        self.clear()

    def clear(self) -> None:
        """Forget all owners: every place is free again."""
        self._owners = [0] * self.size
        # Last in, first out: a place that was used a moment ago is likelier to be in a cache.
        self._free = list(range(self.size - 1, NULL_PLACE, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.capacity - len(self._free)

    @property
    def capacity(self) -> int:
        return self.size - 1

    def take(self, count: int) -> list[int]:
        """Hand out `count` places.

        Raises:
            PoolError: fewer are free; nothing was taken.
        """
        if count > len(self._free):
            raise PoolError(f"{self.name}: {count} wanted, {len(self._free)} free")
        places = [self._free.pop() for _ in range(count)]
        for place in places:
            self._owners[place] = 1
        return places

    def give_back(self, places: Iterable[int]) -> None:
        """Drop one owner of each place; those without owners are free again."""
        for place in places:
            if not NULL_PLACE < place < self.size or self._owners[place] == 0:
                raise PoolError(f"{self.name}: place {place} was given back but has no owner")
            self._owners[place] -= 1
            if self._owners[place] == 0:
                self._free.append(place)

    def owners(self) -> list[int]:
        """Number of owners of each place, a copy."""
        return list(self._owners)

    def free_places(self) -> list[int]:
        """The free places, a copy."""
        return list(self._free)
