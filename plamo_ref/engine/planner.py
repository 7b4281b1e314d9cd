"""From a byte budget to numbers of blocks and slots, with the reasons.

Invariant: everything planned fits the budget; one request alone can always run; a plan is refused
with the missing bytes rather than made too small to work.
Built in notebooks/06_hybrid_cache_manager.ipynb.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from plamo_ref.config import LayerKind, Plamo2Config
from plamo_ref.engine.cache import AttentionGroup, HybridCache
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.pool import Pool

CPU_CACHE_BYTES = 1 << 30  # without memory_bytes on a machine without a GPU
ATTENTION_KINDS: tuple[LayerKind, ...] = ("sliding_window", "full")


@dataclass(frozen=True)
class MemoryPlan:
    """How many places of each kind, null places included, and what they cost."""

    groups: tuple[AttentionGroup, ...]
    num_blocks: Mapping[LayerKind, int]
    block_bytes: Mapping[LayerKind, int]
    num_slots: int  # 0: the model has no Mamba layers
    slot_bytes: int
    block_size: int
    max_num_seqs: int
    budget: int
    reasons: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        blocks = sum(self.num_blocks[kind] * self.block_bytes[kind] for kind in self.num_blocks)
        return blocks + self.num_slots * self.slot_bytes

    def new_cache(self) -> HybridCache:
        """An empty cache of this size."""
        blocks = {kind: Pool(f"{kind} block", n) for kind, n in self.num_blocks.items()}
        slots = Pool("state slot", self.num_slots) if self.num_slots else None
        return HybridCache(self.groups, blocks, slots, self.block_size)


def attention_groups(config: Plamo2Config) -> tuple[AttentionGroup, ...]:
    """The attention groups that the model has."""
    windows = {"sliding_window": config.attention_window_size, "full": None}
    return tuple(
        AttentionGroup(kind, windows[kind]) for kind in ATTENTION_KINDS if config.layers_of(kind)
    )


def plan_memory(
    config: Plamo2Config,
    engine: EngineConfig,
    budget: int,
    *,
    dtype: torch.dtype,
    state_dtype: torch.dtype,
) -> MemoryPlan:
    """Divide `budget` bytes.

    Seats first: as many requests, up to `max_num_seqs`, as can each have a state slot and one
    window of keys in every attention group. Then room for the prompt tokens of one step in the
    windowed group; what is left goes to the group that never forgets.

    Raises:
        EngineError: the budget does not hold one request.
    """
    size = engine.block_size
    groups = attention_groups(config)
    block_bytes = {g.kind: config.kv_bytes_per_token(g.kind, dtype.itemsize) * size for g in groups}
    slot_bytes = config.state_bytes(dtype.itemsize, state_dtype.itemsize)
    # Blocks of W + 1 keys, wherever they begin; fewer if no request can become that long.
    longest = min(config.attention_window_size, engine.max_model_len or math.inf)
    span = math.ceil((longest + size) / size)
    seat_bytes = slot_bytes + span * sum(block_bytes.values())
    reserved = slot_bytes + sum(block_bytes.values())  # the null places
    seats = min(engine.max_num_seqs, (budget - reserved) // seat_bytes)
    if seats < 1:
        raise EngineError(
            f"the cache has {budget:,} bytes, but one request needs {reserved + seat_bytes:,}: "
            f"a state slot ({slot_bytes:,}), {span} blocks for its window in each attention group "
            f"({seat_bytes - slot_bytes:,}) and one spare place of each ({reserved:,}). "
            "Raise memory_bytes or gpu_memory_utilization, or lower block_size"
        )
    left = budget - reserved - seats * seat_bytes
    num_blocks, left = _divide(engine, block_bytes, seats, span, left)
    return MemoryPlan(
        groups=groups,
        num_blocks=num_blocks,
        block_bytes=block_bytes,
        num_slots=1 + seats if slot_bytes else 0,
        slot_bytes=slot_bytes,
        block_size=size,
        max_num_seqs=seats,
        budget=budget,
        reasons=_reasons(config, engine, seats, seat_bytes, span, num_blocks, left),
    )


def _divide(
    engine: EngineConfig, block_bytes: Mapping[LayerKind, int], seats: int, span: int, left: int
) -> tuple[dict[LayerKind, int], int]:
    """Blocks of each group, and the bytes that nobody can use, once every seat has its window."""
    size = engine.block_size
    blocks = dict.fromkeys(block_bytes, 1 + seats * span)
    most: dict[LayerKind, float] = {
        "sliding_window": math.ceil(engine.max_num_batched_tokens / size),
        "full": math.inf,
    }
    if engine.max_model_len is not None:
        most["full"] = max(0, seats * (math.ceil(engine.max_model_len / size) - span))
    for kind in block_bytes:  # windows come before full attention, which takes whatever is left
        share = 2 if kind == "sliding_window" and "full" in block_bytes else 1
        more = int(min(left // block_bytes[kind] // share, most[kind]))
        blocks[kind] += more
        left -= more * block_bytes[kind]
    return blocks, left


def _reasons(
    config: Plamo2Config,
    engine: EngineConfig,
    seats: int,
    seat_bytes: int,
    span: int,
    num_blocks: Mapping[LayerKind, int],
    left: int,
) -> tuple[str, ...]:
    """The plan in sentences."""
    size, window = engine.block_size, config.attention_window_size
    whole = engine.max_model_len is not None and engine.max_model_len < window
    reach = "the longest request" if whole else f"W + 1 = {window + 1} keys"
    limit = "max_num_seqs" if seats == engine.max_num_seqs else "memory"
    lines = [
        f"{seats} seats, limited by {limit}: each {seat_bytes:,} bytes = a state slot and "
        f"{span} blocks of {size} tokens per attention group, enough for {reach}"
    ]
    if "sliding_window" in num_blocks:
        lines.append(
            f"{num_blocks['sliding_window']:,} windowed blocks: one window a seat, and prompt "
            f"tokens of one step (max_num_batched_tokens={engine.max_num_batched_tokens})"
        )
    if "full" in num_blocks:
        tokens = (num_blocks["full"] - 1) * size
        lines.append(
            f"{num_blocks['full']:,} full-attention blocks: {tokens:,} tokens for all requests "
            "together; the longest request can have them all"
        )
    else:
        lines.append("no full-attention layer: a request's memory does not grow with its length")
    return (*lines, f"{left:,} bytes unused")


def plan_device(
    config: Plamo2Config, engine: EngineConfig, memory: int, dtype: torch.dtype
) -> MemoryPlan:
    """The plan for a device of `memory` bytes that has nothing else to hold.

    Raises:
        EngineError: the weights, or one request beside them, do not fit.
    """
    weights = config.num_parameters * dtype.itemsize
    usable = int(memory * engine.gpu_memory_utilization)
    needed = weights + activation_bytes(engine, config, dtype.itemsize)
    if usable <= needed:
        raise EngineError(
            f"{usable:,} usable bytes ({engine.gpu_memory_utilization:.0%} of {memory:,}) do not "
            f"hold the weights ({weights:,}) and one step ({needed - weights:,})"
        )
    state_dtype = engine.resolve_state_dtype(dtype)
    return plan_memory(config, engine, usable - needed, dtype=dtype, state_dtype=state_dtype)


def cache_budget(
    engine: EngineConfig, device: torch.device, config: Plamo2Config, itemsize: int
) -> int:
    """Bytes for the cache once the weights are on the device."""
    if engine.memory_bytes is not None:
        return engine.memory_bytes
    if device.type != "cuda":
        return CPU_CACHE_BYTES
    free, total = torch.cuda.mem_get_info(device)
    usable = int(total * engine.gpu_memory_utilization) - (total - free)
    return max(0, usable - activation_bytes(engine, config, itemsize))


def activation_bytes(engine: EngineConfig, config: Plamo2Config, itemsize: int) -> int:
    """A bound on what one step needs besides weights and cache: a few of its widest tensors."""
    widest = max(2 * config.intermediate_size, 2 * config.mamba_inner_size, config.q_size)
    hidden = engine.max_num_batched_tokens * (widest + 4 * config.hidden_size) * itemsize * 3
    logits = engine.max_num_seqs * config.vocab_size * 4 * 6  # sampling sorts in float64
    return hidden + logits
