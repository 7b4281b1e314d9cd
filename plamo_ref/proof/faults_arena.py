"""Bugs of one arena: of pages that are slots at one time and blocks at another.

Invariant: as in faults.py, by which these are listed; they need scenarios in which there is an
arena, as sharing.py draws them.
"""

from collections.abc import Sequence
from typing import Any

from plamo_ref.config import LayerKind
from plamo_ref.engine.memory.arena import Arena, Claim, PagedPool
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.holding import Holding
from plamo_ref.engine.page_views import Columns
from plamo_ref.proof.planting import Fault, patch


def _lend_twice(turn: Any, pool: PagedPool) -> None:
    turn(pool)
    pool.arena.pages.insert(0, next(reversed(pool.pages)))


def _give_away_in_use(drop: Any, pool: PagedPool, places: list[int]) -> None:
    drop(pool, places)
    pages = {place // pool.use.pitch for place in places} & pool.pages.keys()
    for page in pages if len(pool.pages) > pool.least else ():
        pool._num_open -= len(pool._open.pop(page))
        del pool.pages[page]
        pool.arena.pages.append(page)


def _slot_of_nobody(branch: Any, cache: HybridCache, *args: Any) -> Holding:
    holding: Holding = branch(cache, *args)
    if cache.arena is not None and cache.slots is not None and holding.slot is not None:
        cache.slots.give_back([holding.slot])
    return holding


def _same_part(view: Any, columns: Any, kind: LayerKind, parts: int, _: int, *args: Any) -> Any:
    return view(columns, kind, parts, 0, *args)


def _each_for_itself(_: Any, arena: Arena, claims: Sequence[Claim]) -> bool:
    return all(claim.new <= claim.pool.num_available for claim in claims)


ARENA_FAULTS: tuple[Fault, ...] = (
    Fault(
        "page lent twice",
        "A page that has become one of a pool's is still among those that can be had.",
        "audit",
        patch(PagedPool, "_turn", _lend_twice),
    ),
    Fault(
        "page given away in use",
        "A page becomes free for others when one of its places does, and not the last of them.",
        "audit",
        patch(PagedPool, "_drop", _give_away_in_use),
    ),
    Fault(
        "slot kept over its page",
        "A newcomer goes on with the number of a slot that is not his: its page becomes blocks.",
        "audit",
        patch(HybridCache, "_branch", _slot_of_nobody),
    ),
    Fault(
        "values over keys",
        "The tensors that share a column begin at the same byte of it, and not each at its part.",
        "law",
        patch(Columns, "view", _same_part),
    ),
    Fault(
        "each kind counts on the same page",
        "There is room for the slot, and there is room for the blocks, but not for both of them.",
        "audit",
        patch(Arena, "fits", _each_for_itself),
    ),
)
