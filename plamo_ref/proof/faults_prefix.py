"""Faults of prefix caching: what two requests can wrongly have in common.

Invariant: none of them shows where no two prompts begin alike; on the scenarios of sharing.py, the
checks after every step or the law find them.
"""

from typing import Any

from torch import Tensor

from plamo_ref.batch import LayerCache
from plamo_ref.config import LayerKind
from plamo_ref.engine import copies as copies_module
from plamo_ref.engine import core as core_module
from plamo_ref.engine.batching import BatchPlan
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.holding import BlockTable, Holding
from plamo_ref.engine.memory.pool import NULL_PLACE
from plamo_ref.engine.memory.prefix import PrefixCache
from plamo_ref.engine.memory.radix import Node
from plamo_ref.engine.request import Request
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.engine.scheduling.scheduler import Queues
from plamo_ref.kernels.ssm.narrow import ReplayCache
from plamo_ref.proof.planting import Fault, patch, patch_batch, patch_op


def _alias_slot(
    branch: Any, cache: HybridCache, source: Holding | None, computed: int, end: int
) -> Holding:
    holding: Holding = branch(cache, source, computed, end)
    slot = holding.slot
    if source is None or source.slot is None or slot is None or cache.slots is None:
        return holding
    if source.slot in _in_use(cache):
        cache.slots.give_back([slot])
        cache.slots.share([source.slot])
        cache.copies[:] = [copy for copy in cache.copies if copy[::2] != ("mamba", slot)]
        holding.slot = source.slot
    return holding


def _in_use(cache: HybridCache) -> set[int | None]:
    return {holding.slot for holding in (*cache.holdings.values(), *cache.frozen)} - {None}


def _share_partial(
    branch: Any, cache: HybridCache, source: Holding | None, computed: int, end: int
) -> Holding:
    holding: Holding = branch(cache, source, computed, end)
    if source is None or not computed % cache.block_size:
        return holding
    for kind, table in holding.tables.items():
        of_source = source.tables[kind]
        theirs, own = of_source.blocks[table.end - 1 - of_source.first], table.blocks.pop()
        if cache.blocks[kind].owners()[theirs]:
            cache.blocks[kind].give_back([own])
            cache.blocks[kind].share([theirs])
            cache.copies[:] = [copy for copy in cache.copies if copy[::2] != (kind, own)]
            table.blocks.append(theirs)
        else:
            table.blocks.append(own)
    return holding


def _file_one_token_early(freeze: Any, prefix: PrefixCache, request: Request) -> None:
    computed = request.num_computed_tokens
    request.num_computed_tokens = max(1, computed - 1)
    freeze(prefix, request)
    request.num_computed_tokens = computed


def _forget_window_block(
    full_blocks: Any, cache: HybridCache, kind: LayerKind, holding: Holding, computed: int
) -> BlockTable:
    table: BlockTable = full_blocks(cache, kind, holding, computed)
    if cache.groups[kind].window is not None and len(table.blocks) > 1:
        return BlockTable(table.first + 1, table.blocks[1:])
    return table


def _free_what_is_shared(let_go: Any, cache: HybridCache, holding: Holding) -> None:
    let_go(cache, holding)
    for kind, table in holding.tables.items():
        owners = cache.blocks[kind].owners()
        cache.blocks[kind].give_back(place for place in table.blocks if owners[place])


def _one_root(_: Any, prefix: PrefixCache, request: Request) -> Any:
    return prefix.roots.setdefault(None, Node())


def _leave_at_launch(_: Any, request: Request) -> bool:
    return request.num_output_tokens >= request.max_output_tokens


def _keep_entry_on_abort(remove: Any, queues: Queues, request: Request) -> None:
    remove(queues, request)
    if request.finish_reason == "abort":
        for kept in [*queues.prefix.kept][-1:]:
            queues.cache.let_go(kept.holding)


def _copy_nothing(*_: Any) -> None:
    pass


def _keep_over_an_interrupt(clear: Any, queues: Queues) -> None:
    kept = list(queues.prefix.kept)
    clear(queues)
    queues.prefix.order.kept.update(dict.fromkeys(kept))


def _no_place_is_pinned(frozen: Any, cache: HybridCache, request_id: str, computed: int) -> Holding:
    """Freeze, and go on owning: what was given away is released as well."""
    holding: Holding = frozen(cache, request_id, computed)
    if holding.slot is not None and cache.slots is not None:
        cache.slots.give_up([holding.slot])
    return holding


def _empty_unread(op: Any, params: Any, cache: ReplayCache, slots: Tensor, *where: Any) -> None:
    cache.ring_delta[slots] = 0
    op(params, cache, slots, *where)


def _all_but_the_ring(tensors_of: Any, cache: LayerCache) -> tuple[Tensor, ...]:
    ring = {id(getattr(cache, name, None)) for name in ("ring_u", "ring_b", "ring_delta")}
    return tuple(tensor for tensor in tensors_of(cache) if id(tensor) not in ring)


def _one_token_late(plan: BatchPlan) -> BatchPlan:
    plan.batch.photographs[:, 1] += 1
    return plan


def _into_the_null_slot(plan: BatchPlan) -> BatchPlan:
    plan.batch.photographs[:, 2] = NULL_PLACE
    return plan


def _own_nothing_yet(expose: Any, cache: HybridCache, *args: Any) -> Holding | None:
    holding: Holding | None = expose(cache, *args)
    if holding is not None and holding.slot is not None and cache.slots is not None:
        cache.slots.give_back([holding.slot])
    return holding


PREFIX_FAULTS = (
    Fault(
        "slot aliased instead of copied",
        "Who begins at a kept state goes on in its very slot, and so the kept state goes on too.",
        "law",
        patch(HybridCache, "_branch", _alias_slot),
    ),
    Fault(
        "partly filled block shared",
        "Two who begin at the same moment write their next keys into the same block.",
        "law",
        patch(HybridCache, "_branch", _share_partial),
    ),
    Fault(
        "kept one token too early",
        "A state is filed under the tokens before it, without the last one that entered it.",
        "law",
        patch(PrefixCache, "freeze", _file_one_token_early),
    ),
    Fault(
        "window block not shared",
        "The oldest block that a window still reaches is not handed to who begins there.",
        "audit",
        patch(HybridCache, "_full_blocks", _forget_window_block),
    ),
    Fault(
        "evicted while in use",
        "Eviction frees the blocks of a checkpoint, also those that somebody is reading.",
        "audit",
        patch(HybridCache, "let_go", _free_what_is_shared),
    ),
    Fault(
        "frozen but not owned",
        "The state of a finished request is kept, and its slot is given back as before.",
        "audit",
        patch(HybridCache, "freeze", _no_place_is_pinned),
    ),
    Fault(
        "salt ignored",
        "Whoever brings a salt of his own is served from what others have computed.",
        "law",
        patch(PrefixCache, "_root", _one_root),
    ),
    Fault(
        "kept before an unread token is known",
        "A request leaves while its last token but one is on its way: its state, which has that "
        "token, is filed under what the host knows.",
        "law",
        patch(core_module, "is_leaving", _leave_at_launch),
    ),
    Fault(
        "stale entry after an abort",
        "The memory of an aborted request is freed, and the tree still points at it.",
        "audit",
        patch(Queues, "remove", _keep_entry_on_abort),
    ),
    Fault(
        "copy never made",
        "The books give a newcomer a slot of its own, but nobody copies the state into it.",
        "law",
        patch(ModelRunner, "copy", _copy_nothing),
    ),
    Fault(
        "a prompt overlooks the ring",
        "A part of a prompt begins at the state that was written last, not at what came since.",
        "law",
        patch_op("replay_flush", _empty_unread),
    ),
    Fault(
        "copied without its ring",
        "Who begins at a kept state gets the one that was written last, and not what came since.",
        "law",
        patch(copies_module, "tensors_of", _all_but_the_ring),
    ),
    Fault(
        "photograph one token late",
        "Inside a chunk, the state is left one token behind the moment under which it is filed.",
        "law",
        patch_batch(_one_token_late),
    ),
    Fault(
        "photograph into the wrong slot",
        "The state inside a chunk is left in the null slot, and a slot that nobody wrote is filed.",
        "law",
        patch_batch(_into_the_null_slot),
    ),
    Fault(
        "photograph without an owner",
        "The slot that a step is to write a state into belongs to nobody while the step runs.",
        "audit",
        patch(HybridCache, "expose", _own_nothing_yet),
    ),
    Fault(
        "checkpoints kept over an interrupt",
        "Everybody starts again and all memory is free, but the tree has its entries.",
        "audit",
        patch(Queues, "clear", _keep_over_an_interrupt),
    ),
)
