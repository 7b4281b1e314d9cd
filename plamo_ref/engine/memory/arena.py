"""One arena: pages that are state slots at one time and KV blocks at another.

Two rooms are cut once, for a traffic that nobody knows. Here a pool asks for a page when it has no
place left, and gives it back when the last of its places is free. What is frozen holds no page: to
make room any of it can go, whichever kind of place is wanted, until a page is empty.

Each kind keeps some pages for ever, enough for one request alone. So the oldest request can always
go on, though the blocks of others be scattered over all other pages.

Invariant: a page is of one pool or of none; a pool with more pages than it always keeps has no
empty one; what `fits` says can be taken can be taken, once all that is frozen has gone.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from plamo_ref.config import LayerKind
from plamo_ref.engine.memory.pages import Pages, PageUse
from plamo_ref.engine.memory.pool import Pool, Rooms


class Arena(Rooms):
    """`num_pages` pages, of which number 0, the null page, is never handed out."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.pools: list[PagedPool] = []
        self.pages = list(range(num_pages - 1, 0, -1))  # of no pool

    def clear(self) -> None:
        """No page is of any pool; each pool has to be cleared now."""
        self.pages = list(range(self.num_pages - 1, 0, -1))
        for pool in self.pools:
            pool.pages.clear()

    def short_of(self, needs: Sequence[tuple[Pool, int]]) -> Pool | None:
        if all(count <= pool.num_open for pool, count in needs):
            return None  # most of the time: a block for a token
        counts = {id(pool): count for pool, count in needs}
        wanted, short = 0, None
        for pool in self.pools:
            missing = counts.get(id(pool), 0) - pool.num_open
            if missing > 0:
                short, wanted = pool, wanted + -(-missing // pool.use.count)
        if wanted <= len(self.pages) or not any(pool.num_evictable for pool in self.pools):
            return None
        return short if self.fits([Claim(p, counts.get(id(p), 0)) for p in self.pools]) else None

    def fits(self, claims: Iterable["Claim"]) -> bool:
        """Whether all of these can be had together, if everything frozen goes that is in the way;
        pools that are not named need what they have."""
        claimed = {id(claim.pool): claim for claim in claims}
        pages = 0
        for pool in self.pools:
            claim = claimed.get(id(pool))
            pages += pool.pages_for(Claim(pool, 0) if claim is None else claim)
        return pages < self.num_pages

    def most(self, claims: Sequence["Claim"], wanted: int, blocks_of: Callable[[int], int]) -> int:
        """How many of `wanted` tokens there are pages for. `blocks_of`: blocks by new tokens."""

        def is_too_much(tokens: int) -> bool:
            blocks = blocks_of(tokens)
            grown = (c._replace(new=max(0, c.new + blocks)) if c.grows else c for c in claims)
            return not self.fits(grown)

        blocks = blocks_of(wanted)
        if all(c.new + c.grows * blocks <= c.pool.num_open for c in claims):
            return wanted  # no page is needed
        if not is_too_much(wanted):
            return wanted
        return bisect_left(range(1, wanted), True, key=is_too_much)

    def room_for(self, pool: "PagedPool") -> int:
        """Pages that it can have, with all that others can do without."""
        others = (max(o.least, o.num_held_pages) for o in self.pools if o is not pool)
        return self.num_pages - 1 - sum(others)

    def differences(self) -> list[str]:
        """Pages that are lost, or of two pools, or kept for nothing, or miscounted."""
        has = Counter(self.pages)
        for pool in self.pools:
            has.update(list(pool.pages))
        wrong = [f"page {n} is in {has[n]} hands" for n in range(1, self.num_pages) if has[n] != 1]
        if has[0]:
            wrong.append("page 0, the null page, is in use")
        return wrong + [each for pool in self.pools for each in pool.page_differences()]


class PagedPool(Pool):
    """Places of one kind in the pages that the arena lends.

    Args:
        least: pages that it always keeps.
        assured: places that one who is alone can have; at most those of `least` pages.
    """

    def __init__(
        self, name: str, arena: Arena, use: PageUse, least: int, assured: int, place_bytes: int = 1
    ) -> None:
        self.arena, self.use, self.least, self._assured = arena, use, least, assured
        self.pages: dict[int, None] = {}
        arena.pools.append(self)
        super().__init__(name, arena.num_pages * use.pitch, place_bytes)

    def clear(self) -> None:
        super().clear()
        self.arena.pages += reversed(self.pages)
        self.pages.clear()
        self._free = []  # not used here
        self._open: dict[int, list[int]] = {}  # free places by page; the newest page comes last
        self._num_open = 0  # of these places
        self._held_in = [0] * self.arena.num_pages  # how many places of a page are
        self.num_held_pages = 0  # pages with any
        for _ in range(self.least):
            self._turn()

    @property
    def num_open(self) -> int:
        return self._num_open

    @property
    def num_free(self) -> int:
        return self._num_open + len(self.arena.pages) * self.use.count

    @property
    def num_available(self) -> int:
        return self.arena.room_for(self) * self.use.count - self._num_held

    @property
    def capacity(self) -> int:
        others = sum(pool.least for pool in self.arena.pools if pool is not self)
        return (self.arena.num_pages - 1 - others) * self.use.count

    @property
    def num_assured(self) -> int:
        return self._assured

    def pages_for(self, claim: "Claim") -> int:
        """Pages that this pool has at least when the claim is met and nothing is frozen."""
        held, pages, pitch = self._num_held, self.num_held_pages, self.use.pitch
        if claim.leaving:
            left = Counter(place // pitch for place in claim.leaving)
            held -= len(claim.leaving)
            pages -= sum(self._held_in[page] == count for page, count in left.items())
        if claim.shared:
            cold = [place for place in claim.shared if not self._held[place]]
            held += len(cold)
            pages += len({page for place in cold if not self._held_in[page := place // pitch]})
        return max(self.least, pages, -(-(held + claim.new) // self.use.count))

    def free_places(self) -> list[int]:
        """Those that could be taken at once: of its pages, and of pages that are of no pool."""
        own = [place for places in self._open.values() for place in places]
        return own + [place for page in self.arena.pages for place in self.use.places(page)]

    # --- pages come and go ----------------------------------------------------------------------

    def _turn(self) -> None:
        """A page becomes one of this pool's."""
        page = self.arena.pages.pop()
        self.pages[page] = None
        self._open[page] = self.use.places(page)[::-1]
        self._num_open += self.use.count

    def _pick(self, count: int) -> list[int]:
        picked = list[int]()
        while missing := count - len(picked):
            if not self._open:
                self._turn()
            # The page that was full last has the fewest free places; others may come to be empty.
            page, free = next(reversed(self._open.items()))
            picked += free[: -missing - 1 : -1]
            del free[-missing:]
            if not free:
                del self._open[page]
        self._num_open -= count
        return picked

    def _drop(self, places: list[int]) -> None:
        pitch, whole = self.use.pitch, self.use.count
        for place in places:
            page = place // pitch
            free = self._open.setdefault(page, [])
            free.append(place)
            if len(free) == whole and len(self.pages) > self.least:
                del self._open[page], self.pages[page]
                self._num_open -= whole
                self.arena.pages.append(page)
        self._num_open += len(places)

    def _warm(self, places: list[int]) -> None:
        super()._warm(places)
        pitch, held = self.use.pitch, self._held_in
        for place in places:
            page = place // pitch
            self.num_held_pages += not held[page]
            held[page] += 1

    def _cool(self, places: list[int]) -> None:
        super()._cool(places)
        pitch, held = self.use.pitch, self._held_in
        for place in places:
            page = place // pitch
            held[page] -= 1
            self.num_held_pages -= not held[page]

    # --- the audit -----------------------------------------------------------------------------

    def _exists(self, place: int) -> bool:
        page = place // self.use.pitch
        known = page in self.pages or page in self.arena.pages
        return known and place in self.use.places(page)

    def page_differences(self) -> list[str]:
        """Pages that are kept for nothing, or in which places are miscounted."""
        wrong, owners, pitch = list[str](), self.owners(), self.use.pitch
        used = Counter(place // pitch for place, count in enumerate(owners) if count)
        held = Counter(place // pitch for place, count in enumerate(self._held) if count)
        for page in used.keys() - self.pages.keys():
            wrong.append(f"page {page} is not of {self.name}, which has {used[page]} places there")
        for page in self.pages:
            free = len(self._open.get(page, ()))
            if free + used[page] != self.use.count:
                wrong.append(f"page {page}: {free} {self.name}s are free, {used[page]} used")
            if not used[page] and len(self.pages) > self.least:
                wrong.append(f"page {page} is empty, and still of {self.name}")
        if self._num_open != sum(map(len, self._open.values())):
            wrong.append(f"{self.name}: {self._num_open} are said to be free in its pages")
        if held != Counter(dict(enumerate(self._held_in))) or self.num_held_pages != len(held):
            wrong.append(f"{self.name}: {self.num_held_pages} pages are said to be held")
        if len(self.pages) < self.least:
            wrong.append(f"{self.name} has {len(self.pages)} pages, {self.least} are the least")
        return wrong


class Claim(NamedTuple):
    """What somebody wants of a pool: so many new places, or, if it grows, so many besides the
    blocks of his tokens; `leaving` ones are given back before (see `Pool.leaving`), `shared` ones
    get one more owner."""

    pool: Pool
    new: int
    leaving: Sequence[int] = ()
    shared: Sequence[int] = ()
    grows: bool = False


def paged_pools(
    pages: Pages, place_bytes: Mapping[LayerKind, int]
) -> tuple[Arena, dict[LayerKind, Pool]]:
    """An empty arena, and the pool of each kind."""
    arena, pools = Arena(pages.num_pages), dict[LayerKind, Pool]()
    for kind, use in pages.shape.uses.items():
        name = "state slot" if kind == "mamba" else f"{kind} block"
        least, assured = pages.least[kind], pages.assured[kind]
        pools[kind] = PagedPool(name, arena, use, least, assured, place_bytes[kind])
    return arena, pools
