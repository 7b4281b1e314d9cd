"""The state of an engine in numbers, for whoever watches it from another process.

Invariant: reads, and changes nothing; memory that is kept for nobody in particular counts as free.
"""

from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.record import memory_in_use
from plamo_ref.remote.messages import DraftStats, PrefixStats, Stats


def stats_of(core: EngineCore, num_compiling: int, num_preemptions: int) -> Stats:
    """Between two steps.

    Args:
        num_compiling: requests that are not in the core yet.
        num_preemptions: of requests that are gone.
    """
    queues, cache = core.queues, core.cache
    blocks, slots = memory_in_use(cache)
    usage = {str(k): pool.num_held / max(1, pool.capacity) for k, pool in cache.blocks.items()}
    if cache.slots is not None:
        usage["state_slots"] = slots / max(1, cache.slots.capacity)
    return Stats(
        num_waiting=len(queues.waiting) + num_compiling,
        num_running=len(queues.running),
        num_steps=core.num_steps,
        num_preemptions=num_preemptions + sum(r.num_preemptions for r in core.requests.values()),
        blocks_used={str(kind): used for kind, used in blocks.items()},
        slots_used=slots,
        usage=usage,
        prefix=prefix_stats(core),
        drafts=draft_stats(core),
    )


def prefix_stats(core: EngineCore) -> PrefixStats:
    """What came of prefix caching."""
    prefix = core.queues.prefix
    counts = prefix.counts
    return PrefixStats(
        asked=counts.asked,
        found=counts.found,
        misses=dict(counts.misses),
        evicted=counts.evicted,
        num_kept=len(prefix.order.kept),
        bytes_kept=sum(pool.num_evictable * pool.place_bytes for pool in core.cache.pools),
    )


def draft_stats(core: EngineCore) -> DraftStats | None:
    """What came of drafts."""
    drafter = core.queues.drafter
    return None if drafter is None else DraftStats(*drafter.counts)
