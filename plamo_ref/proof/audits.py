"""Who looks on while the engine runs: the audit of its memory, and the rules of its schedulers.

Invariant: what is expected is arithmetic written down here; of the engine only the state is read.
"""

import math
from collections.abc import Sequence

from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.cache import HybridCache, IntegrityError
from plamo_ref.engine.record import ScheduledTokens, StepRecord
from plamo_ref.engine.request import Request
from plamo_ref.errors import PlamoRefError


class ScheduleError(PlamoRefError, AssertionError):
    """A scheduler did what it must not, or did nothing."""


def audit(core: EngineCore, scheduled: Sequence[ScheduledTokens] = ()) -> None:
    """The cache's own audit, and what the cache cannot know: who is entitled to memory.

    Raises:
        IntegrityError: memory is lost, shared by mistake, missing, or kept for too long.
    """
    cache, running = core.cache, {r.request_id: r for r in core.queues.running}
    cache.check_integrity()
    if cache.holdings.keys() != running.keys():
        raise IntegrityError(
            f"memory is held by {sorted(cache.holdings)}, but running are {sorted(running)}"
        )
    filed = {checkpoint.holding for checkpoint in core.queues.prefix.kept}
    if cache.exposed:
        raise IntegrityError(f"{len(cache.exposed)} photographs were exposed and not developed")
    if cache.frozen != filed:
        raise IntegrityError(
            f"{len(cache.frozen)} holdings are frozen, {len(filed)} are filed, "
            f"{len(cache.frozen & filed)} are both"
        )
    for request in running.values():
        check_covers(cache, request.request_id, request.num_computed_tokens)
    for share in scheduled:
        if share.request_id in running:
            _audit_tables(core, share)


def check_covers(cache: HybridCache, request_id: str, computed: int) -> None:
    """Check that what the next token of a request can see is still there.

    Raises:
        IntegrityError: a block is missing or lies outside its table.
    """
    for kind, table in cache.holdings[request_id].tables.items():
        needed = cache.first_needed(kind, computed)
        if table.first > needed or table.end * cache.block_size < computed:
            raise IntegrityError(
                f"request {request_id}, group {kind}: blocks {table.first} to {table.end - 1} "
                f"do not cover tokens from block {needed} to token {computed - 1}"
            )


def _audit_tables(core: EngineCore, share: ScheduledTokens) -> None:
    """After computing tokens start to end - 1, blocks reach from the first visible key to end, or
    as far as a draft did."""
    size, end = core.cache.block_size, share.start + share.num_tokens
    farthest = math.ceil((end + core.requests[share.request_id].most_new - 1) / size)
    for kind, table in core.cache.holdings[share.request_id].tables.items():
        window = core.runner.model.config.attention_window_size
        visible = 0 if kind == "full" else max(0, share.start - window)
        expected = (visible // size, math.ceil(end / size))
        if table.first != expected[0] or not expected[1] <= table.end <= farthest:
            raise IntegrityError(
                f"request {share.request_id}, group {kind}, after tokens {share.start} to "
                f"{end - 1}: holds blocks {table.first} to {table.end - 1}, "
                f"should hold {expected[0]} to {expected[1] - 1}"
            )


def check_all_free(core: EngineCore) -> None:
    audit(core)
    used = {pool.name: pool.num_held for pool in core.cache.pools if pool.num_held}
    if used or core.requests or core.queues.waiting:
        raise IntegrityError(f"everybody is gone, but in use are {used or core.requests}")
    if core.tables is not None and core.tables.num_seats:
        raise IntegrityError(f"everybody is gone, but {core.tables.num_seats} rows are kept")


def check_nothing_kept(core: EngineCore) -> None:
    """Behind a reset of the prefix cache, with nobody there."""
    audit(core)
    prefix = core.queues.prefix
    used = {pool.name: pool.num_used for pool in core.cache.pools if pool.num_used}
    if used or prefix.kept or prefix.roots:
        raise IntegrityError(f"nothing is to be kept, but is: {used or prefix.roots}")


# --- schedule -------------------------------------------------------------------------------------


def check_schedule(core: EngineCore, record: StepRecord) -> None:
    """What holds for every step of either scheduler.

    Raises:
        ScheduleError: names the step and the rule.
    """
    config, queues = core.config, core.queues
    prefills = [share for share in record.scheduled if share.kind != "decode"]
    order = [request.arrival for request in (*queues.running, *queues.waiting)]
    served = [
        core.requests[s.request_id] for s in record.scheduled if s.request_id in core.requests
    ]
    last = max((request.arrival for request in served), default=-1)
    unserved = [r for r in queues.running if r not in served and r.guide is None]
    passed_over = [r for r in unserved if r.arrival < last and not _waits_for_time(core, r)]
    is_v0, chunk = config.scheduler == "v0", config.chunk_size
    rules = {
        "the token budget is exceeded": record.num_tokens > config.step_tokens,
        "somebody was admitted in a step for which somebody had to go": bool(
            record.admitted and record.preempted
        ),
        "more requests run than there are seats": len(queues.running) > queues.max_num_seqs,
        "not first come, first served": order != sorted(order),
        "a running request was passed over": not is_v0 and bool(passed_over),
        "a prompt was passed over for a newer one": any(
            _waits_for_time(core, r) and r.arrival < _newest_prompt(core, prefills)
            for r in unserved
        ),
        "no prompt makes progress": any(_waits_for_time(core, r) for r in unserved)
        and not prefills
        and record.num_tokens < config.step_tokens,
        "prefills and decodes in one step": is_v0 and 0 < len(prefills) < len(record.scheduled),
        "a chunk is too long": is_v0
        and chunk is not None
        and any(share.num_tokens > chunk for share in prefills),
    }
    broken = [rule for rule, is_broken in rules.items() if is_broken]
    if broken:
        raise ScheduleError(f"step {record.step}: {'; '.join(broken)}: {record}")


def _waits_for_time(core: EngineCore, request: Request) -> bool:
    """Whether a running request may be left out of a step that has no time for it."""
    return core.queues.pace is not None and not request.is_decoding


def _newest_prompt(core: EngineCore, prefills: Sequence[ScheduledTokens]) -> int:
    """The latest arrival of those whose prompts a step computed; -1: nobody's."""
    there = [core.requests[s.request_id] for s in prefills if s.request_id in core.requests]
    return max((request.arrival for request in there), default=-1)
