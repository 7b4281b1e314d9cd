"""Faults of the house-keeping: who owns which block and slot.

Invariant: none of them touches a tensor, and the audit after every step finds them.
"""

from collections.abc import Callable
from typing import Any

from plamo_ref.config import LayerKind
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.holding import BlockTable
from plamo_ref.engine.memory.pool import Pool
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Queues, Schedule
from plamo_ref.proof.planting import Fault, patch, together


def _free_twice(release: Any, cache: HybridCache, request_id: str) -> None:
    tables = cache.holdings[request_id].tables if request_id in cache.holdings else {}
    blocks = {kind: list(table.blocks) for kind, table in tables.items()}
    release(cache, request_id)
    for kind, places in blocks.items():
        cache.blocks[kind].give_back(places)


def _forget_last_block(release: Any, cache: HybridCache, request_id: str) -> None:
    if request_id in cache.holdings:
        for table in cache.holdings[request_id].tables.values():
            del table.blocks[-1:]
    release(cache, request_id)


def _forget_slot(release: Any, cache: HybridCache, request_id: str) -> None:
    if request_id in cache.holdings:
        cache.holdings[request_id].slot = None
    release(cache, request_id)


def _hand_out_twice(take: Any, pool: Pool, count: int) -> list[int]:
    used = [place for place, owners in enumerate(pool.owners()) if owners]
    places: list[int] = take(pool, count)
    return [used[0], *places[1:]] if used and places else places


def _hand_out_null(take: Any, pool: Pool, count: int) -> list[int]:
    places: list[int] = take(pool, count)
    return [0, *places[1:]] if places else places


def _keep_memory(_: Any, queues: Queues, request: Request) -> None:
    for queue in (queues.running, queues.waiting):
        if request in queue:
            queue.remove(request)


def _keep_on_preemption(preempt: Any, queues: Queues, request: Request, schedule: Schedule) -> None:
    held = queues.cache.holdings.pop(request.request_id)
    preempt(queues, request, schedule)
    queues.cache.holdings[request.request_id] = held


def _window_moved(by: int) -> Callable[..., int]:
    def first_needed(healthy: Any, cache: HybridCache, kind: LayerKind, computed: int) -> int:
        windowed = cache.groups[kind].window is not None
        block: int = healthy(cache, kind, max(0, computed + by) if windowed else computed)
        return block

    return first_needed


def _calm_ends_early(healthy: Any, table: BlockTable, size: int, window: int | None) -> int:
    end: int = healthy(table, size, window if window is None else window - 1)
    return end


def _window_never_ends(*_: Any) -> int:
    return 0


def _table_not_cleared(allocate: Any, cache: HybridCache, request_id: str, *tokens: int) -> None:
    is_new = request_id not in cache.holdings
    allocate(cache, request_id, *tokens)
    if is_new and len(cache.holdings) > 1:
        before = next(iter(cache.holdings.values())).tables
        for kind, table in cache.holdings[request_id].tables.items():
            table.blocks[:0] = before[kind].blocks[:1]


MEMORY_FAULTS = (
    Fault(
        "block freed twice",
        "A finished request gives its blocks back, and then its cleanup does so again.",
        "audit",
        patch(HybridCache, "release", _free_twice),
    ),
    Fault(
        "block leaked",
        "The last block of a request, half full, is forgotten when the request ends.",
        "audit",
        patch(HybridCache, "release", _forget_last_block),
    ),
    Fault(
        "state slot leaked",
        "A request gives back its blocks but not its state slot.",
        "audit",
        patch(HybridCache, "release", _forget_slot),
    ),
    Fault(
        "place handed out twice",
        "The pool gives a newcomer a place that somebody still uses.",
        "audit",
        patch(Pool, "take", _hand_out_twice),
    ),
    Fault(
        "null place handed out",
        "The pool gives away place 0, which padding reads and writes.",
        "audit",
        patch(Pool, "take", _hand_out_null),
    ),
    Fault(
        "finished request not released",
        "A request that ends leaves the queue but keeps its memory.",
        "audit",
        patch(Queues, "remove", _keep_memory),
    ),
    Fault(
        "preempted request keeps its memory",
        "A request is sent back to the queue to make room, but its blocks are not freed.",
        "audit",
        patch(Queues, "preempt", _keep_on_preemption),
    ),
    Fault(
        "window freed one token early",
        "Blocks are freed as if a query saw W keys; in PLaMo 2 it sees W and its own.",
        "audit",
        together(
            patch(HybridCache, "first_needed", _window_moved(1)),
            patch(BlockTable, "calm_until", _calm_ends_early),
        ),
    ),
    Fault(
        "window freed one token late",
        "A block stays for one token longer than anybody can see it.",
        "audit",
        patch(HybridCache, "first_needed", _window_moved(-1)),
    ),
    Fault(
        "window never freed",
        "Blocks that left the window stay until the request ends, as if attention were full.",
        "audit",
        patch(HybridCache, "first_needed", _window_never_ends),
    ),
    Fault(
        "block table not cleared",
        "The block table of a new request begins with an entry of another one.",
        "audit",
        patch(HybridCache, "allocate", _table_not_cleared),
    ),
)
