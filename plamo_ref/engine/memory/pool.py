"""Numbered places of equal size (KV blocks, state slots), handed out and taken back.

Invariant: place 0 is never handed out (padding reads and writes it); every other place is either
free or has at least one owner. Some owners are frozen: they keep a place for whoever may come, and
give it up as soon as somebody wants it (see prefix.py). A place of which all owners are frozen is
evictable, and as good as free.
Built in notebooks/05_paged_attention.ipynb.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice

from plamo_ref.engine.config import EngineError

NULL_PLACE = 0


class PoolError(EngineError):
    """A place was taken or given back against the rules: a bug in the caller."""


class Pool:
    """`size` places, of which `size - 1` can be used."""

    def __init__(self, name: str, size: int, place_bytes: int = 1) -> None:
        if size < 2:
            raise EngineError(
                f"{name}: room for {size} places; one is reserved, so 2 are the least"
            )
        self.name, self.size, self.place_bytes = name, size, place_bytes
        self.clear()

    def clear(self) -> None:
        """Forget all owners: every place is free again."""
        self._held = [0] * self.size  # owners who are not frozen
        self._frozen = [0] * self.size  # those who are
        self._num_held = self._num_evictable = 0
        # Last in, first out: a place that was used a moment ago is likelier to be in a cache.
        self._free = list(range(self.size - 1, NULL_PLACE, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_open(self) -> int:
        """Free places that are this pool's and no other's."""
        return self.num_free

    @property
    def num_used(self) -> int:
        return self._num_held + self._num_evictable

    @property
    def num_evictable(self) -> int:
        """Used places that nobody holds who would not give them up."""
        return self._num_evictable

    @property
    def num_available(self) -> int:
        """Places to be had now: free ones, and those for which something frozen has to go."""
        return len(self._free) + self._num_evictable

    @property
    def num_held(self) -> int:
        """Places that somebody holds who is not frozen."""
        return self._num_held

    @property
    def capacity(self) -> int:
        """Places that there can be at most."""
        return self.size - 1

    @property
    def num_assured(self) -> int:
        """Places that one who is alone can have, whatever came before."""
        return self.capacity

    def take(self, count: int) -> list[int]:
        """Hand out `count` places.

        Raises:
            PoolError: fewer are free; nothing was taken.
        """
        if count > self.num_free:
            raise PoolError(f"{self.name}: {count} wanted, {self.num_free} free")
        places = self._pick(count)
        for place in places:
            self._held[place] = 1
        self._warm(places)
        return places

    # A long prompt has hundreds of places, and all of them come by here several times in its life:
    # so each of these is a loop of its own, which calls nothing.

    def give_back(self, places: Iterable[int]) -> None:
        """Drop one owner of each place; those without owners are free again."""
        held, frozen, size = self._held, self._frozen, self.size
        cold, free = list[int](), list[int]()
        for place in places:
            owners = held[place] if 0 < place < size else 0
            if not owners:
                raise self._has_none(place, "was given back")
            held[place] = owners - 1
            if owners == 1:
                (cold if frozen[place] else free).append(place)
        self._num_evictable += len(cold)
        self._cool(cold + free)
        self._drop(free)

    def share(self, places: Iterable[int]) -> None:
        """Add an owner to each place."""
        held, frozen, size, cold = self._held, self._frozen, self.size, list[int]()
        for place in places:
            owners = held[place] if 0 < place < size else 0
            if not owners:
                if not 0 < place < size or not frozen[place]:
                    raise self._has_none(place, "is to be shared")
                cold.append(place)
            held[place] = owners + 1
        self._num_evictable -= len(cold)
        self._warm(cold)

    def freeze(self, places: Iterable[int]) -> None:
        """One owner of each place will give it up when somebody wants it."""
        held, frozen, size, cold = self._held, self._frozen, self.size, list[int]()
        for place in places:
            owners = held[place] if 0 < place < size else 0
            if not owners:
                raise self._has_none(place, "is to be frozen")
            held[place] = owners - 1
            frozen[place] += 1
            if owners == 1:
                cold.append(place)
        self._num_evictable += len(cold)
        self._cool(cold)

    def give_up(self, places: Iterable[int]) -> None:
        """Drop one frozen owner of each place; those without owners are free again."""
        held, frozen, size, free = self._held, self._frozen, self.size, list[int]()
        for place in places:
            owners = frozen[place] if 0 < place < size else 0
            if not owners:
                raise self._has_none(place, "is to be given up")
            frozen[place] = owners - 1
            if owners == 1 and not held[place]:
                free.append(place)
        self._num_evictable -= len(free)
        self._drop(free)

    def _has_none(self, place: int, what: str) -> PoolError:
        return PoolError(f"{self.name}: place {place} {what} but has no owner")

    def _pick(self, count: int) -> list[int]:
        """So many of the free places, which are free no more."""
        return [self._free.pop() for _ in range(count)]

    def _drop(self, places: list[int]) -> None:
        """These are free again."""
        self._free += places

    def _warm(self, places: list[int]) -> None:
        """These are held now, and were not."""
        self._num_held += len(places)

    def _cool(self, places: list[int]) -> None:
        """These were held, and are not any more."""
        self._num_held -= len(places)

    def is_evictable(self, place: int) -> bool:
        return not self._held[place] and self._frozen[place] > 0

    def is_alone(self, places: Sequence[int]) -> bool:
        """Whether one of these has a single owner; it is the likelier the later it comes."""
        held, frozen = self._held, self._frozen
        return any(held[place] + frozen[place] == 1 for place in reversed(places))

    def leaving(self, places: Iterable[int]) -> list[int]:
        """Those of these that would be free or evictable, if one owner who is not frozen went."""
        return [place for place in places if self._held[place] == 1]

    def owners(self) -> list[int]:
        """Number of owners of each place, a copy."""
        return [held + frozen for held, frozen in zip(self._held, self._frozen, strict=True)]

    def free_places(self) -> list[int]:
        """The free places, a copy."""
        return list(self._free)

    # --- the audit -----------------------------------------------------------------------------

    def differences(self, listed: Counter[int], frozen: Counter[int]) -> list[str]:
        """What these books say, and what the holdings say, frozen ones apart and with the others.

        Args:
            listed, frozen: how often holdings, and how often frozen ones, list each place.
        """
        name, free, wrong = self.name, Counter(self.free_places()), list[str]()
        for place, owners in islice(enumerate(self.owners()), 1, None):  # [] of a Counter is slow
            if owners != (n := listed.get(place, 0)):
                wrong.append(f"{name} {place} has {owners} owners, tables list it {n} times")
            if (n := free.get(place, 0)) != (owners == 0 and self._exists(place)):
                wrong.append(f"{name} {place} has {owners} owners, the free list has it {n} times")
            if (said := self._frozen[place]) != (n := frozen.get(place, 0)):
                wrong.append(f"{name} {place} has {owners} owners, {said} of them frozen, not {n}")
        cold = [place for place, count in enumerate(self._frozen) if count]
        if self._num_evictable != sum(map(self.is_evictable, cold)):
            wrong.append(f"{self.name}: {self._num_evictable} are said to be evictable")
        if self._num_held != sum(map(bool, self._held)):
            wrong.append(f"{self.name}: {self._num_held} are said to be held")
        if listed[0] or free[0]:
            wrong.append(f"{self.name} 0, the null place, is in use")
        return wrong

    def _exists(self, place: int) -> bool:
        """Whether it can be somebody's, as things are."""
        return True


class Rooms:
    """Each pool for itself: what one kind of place does not need is of no use to the others."""

    def short_of(self, needs: Sequence[tuple[Pool, int]]) -> Pool | None:
        """For which pool something frozen has to go so that all of these can be taken; None: they
        can be, or nothing frozen is in the way."""
        short = (p for p, count in needs if p.num_free < count and p.num_evictable)
        return next(short, None)
