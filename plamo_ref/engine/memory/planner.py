"""From a byte budget to numbers of blocks and slots, with the reasons.

Invariant: everything planned fits the budget; one request alone can always run, to max_model_len
where that is given; more memory never gives less; a plan is refused with the missing bytes rather
than made too small to work.
Built in notebooks/06_hybrid_cache_manager.ipynb.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plamo_ref.config import LayerKind, Plamo2Config
from plamo_ref.engine.config import MOST_DRAFTS, EngineConfig, EngineError
from plamo_ref.engine.dtypes import torch_dtype
from plamo_ref.engine.memory.arena import paged_pools
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.holding import AttentionGroup, attention_groups
from plamo_ref.engine.memory.paged_plan import as_pages
from plamo_ref.engine.memory.pages import Pages
from plamo_ref.engine.memory.plan_text import reasons, refusal
from plamo_ref.engine.memory.pool import Pool

if TYPE_CHECKING:
    import torch

Blocks = dict[LayerKind, int]


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
    # One arena, instead of two rooms: then the numbers above are the most there can be of each.
    pages: Pages | None = None
    stochastic: bool = False  # states are rounded by chance
    kv_dtype: "torch.dtype | None" = None  # of keys and values; None: the model's
    replay: int = 1  # tokens until a state is written

    @property
    def total_bytes(self) -> int:
        if self.pages is not None:
            return self.pages.num_pages * self.pages.shape.page_bytes
        blocks = sum(self.num_blocks[kind] * self.block_bytes[kind] for kind in self.num_blocks)
        return blocks + self.num_slots * self.slot_bytes

    def new_cache(self) -> HybridCache:
        """An empty cache of this size."""
        if self.pages is not None:
            arena, pools = paged_pools(self.pages, {**self.block_bytes, "mamba": self.slot_bytes})
            states = pools.pop("mamba", None)
            return HybridCache(self.groups, pools, states, self.block_size, arena)
        blocks = {
            kind: Pool(f"{kind} block", n, self.block_bytes[kind])
            for kind, n in self.num_blocks.items()
        }
        slots = Pool("state slot", self.num_slots, self.slot_bytes) if self.num_slots else None
        return HybridCache(self.groups, blocks, slots, self.block_size)


@dataclass(frozen=True)
class Needs:
    """What one request takes, in blocks and bytes, if it may have so many tokens."""

    size: int  # of a block, in tokens
    block_bytes: Mapping[LayerKind, int]
    slot_bytes: int
    span: int  # blocks of a window, or of the whole request if that is shorter
    full_span: int  # full-attention blocks of the longest request, at least `span`

    @classmethod
    def of(
        cls,
        config: Plamo2Config,
        size: int,
        longest: int | None,
        dtypes: "tuple[torch.dtype, ...]",
        replay: int,
    ) -> "Needs":
        """Of a request of `longest` tokens; None: of as many as there is room for. dtypes: of
        activations, of states, of keys and values; replay: tokens until a state is written."""
        item, state_item, kv_item = (dtype.itemsize for dtype in dtypes)
        # Blocks of W + 1 keys, wherever they begin; fewer if no request can become that long.
        window = min(config.attention_window_size, longest or math.inf)
        span = math.ceil((window + size) / size)
        return cls(
            size=size,
            block_bytes={
                group.kind: config.kv_bytes_per_token(group.kind, kv_item) * size
                for group in attention_groups(config)
            },
            slot_bytes=config.state_bytes(item, state_item) + config.ring_bytes(replay, item),
            span=span,
            full_span=max(span, math.ceil((longest or 0) / size)),
        )

    @property
    def window_bytes(self) -> int:
        """Of a block of the windowed group; 0 without one."""
        return self.block_bytes.get("sliding_window", 0)

    @property
    def full_bytes(self) -> int:
        """Of a block of the full-attention group; 0 without one."""
        return self.block_bytes.get("full", 0)

    @property
    def reserved(self) -> int:
        """Bytes of the null places."""
        return self.slot_bytes + sum(self.block_bytes.values())

    @property
    def seat_bytes(self) -> int:
        """Of a further seat, besides full-attention blocks, which all requests share."""
        return self.slot_bytes + self.span * self.window_bytes

    @property
    def first_bytes(self) -> int:
        """Of everything that the longest request needs when it is alone."""
        return self.reserved + self.seat_bytes + self.full_span * self.full_bytes


def plan_memory(
    config: Plamo2Config,
    engine: EngineConfig,
    budget: int,
    *,
    dtype: "torch.dtype",
    state_dtype: "torch.dtype",
) -> MemoryPlan:
    """Divide `budget` bytes.

    First of all one request of the greatest length must fit: seats give way to length. What is left
    buys further seats, up to `max_num_seqs`: a state slot and a window in every attention group for
    each; then room for the prompt tokens of one step in the windowed group. With full attention
    half of it buys length, that is full-attention blocks, and what seats do not want does so, too.
    With prefix caching, what is left then buys room for what is kept: states and windows, by half.
    Without, it buys slots for drafts, if there are to be any.

    More memory never makes a plan smaller: as many seats at least, and as many tokens.

    Raises:
        EngineError: the budget does not hold one request.
    """
    kv = dtype if engine.kv_cache_dtype == "auto" else torch_dtype(engine.kv_cache_dtype)
    kinds, size, replay = (dtype, state_dtype, kv), engine.block_size, engine.state_replay
    needs = Needs.of(config, size, engine.max_model_len, kinds, replay)
    if budget < needs.first_bytes:
        bytes_of = lambda n: Needs.of(config, size, n, kinds, replay).first_bytes  # noqa: E731
        raise EngineError(refusal(engine, budget, needs, bytes_of))
    seats, kept, num_blocks = _divide(engine, needs, budget - needs.first_bytes)
    num_slots = 1 + seats + kept if needs.slot_bytes else 0
    used = num_slots * needs.slot_bytes + sum(
        num_blocks[kind] * needs.block_bytes[kind] for kind in num_blocks
    )
    plan = MemoryPlan(
        groups=attention_groups(config),
        num_blocks=num_blocks,
        block_bytes=needs.block_bytes,
        num_slots=num_slots,
        slot_bytes=needs.slot_bytes,
        block_size=needs.size,
        max_num_seqs=seats,
        budget=budget,
        reasons=reasons(config, engine, (seats, kept), needs, num_blocks, budget - used),
        stochastic=engine.state_rounding == "stochastic",
        kv_dtype=kv,
        replay=replay,
    )
    return as_pages(plan, config, engine, needs, kinds) if engine.one_arena else plan


def _divide(engine: EngineConfig, needs: Needs, spare: int) -> tuple[int, int, Blocks]:
    """Seats, slots beside them, and blocks of each group, once one request has what it needs and
    `spare` bytes are left. Each share of them only grows with them, so all that it buys does."""
    keeps = engine.enable_prefix_caching
    further = engine.seats - 1
    in_step = math.ceil(engine.step_tokens / needs.size)
    full_blocks, for_full = needs.full_span, 0
    drafts = 0 if keeps or engine.speculative_config is None else MOST_DRAFTS * needs.slot_bytes
    if needs.full_bytes:
        wanted = further * needs.seat_bytes + in_step * needs.window_bytes + drafts
        for_full = spare - min(spare // 2, spare if keeps and needs.seat_bytes else wanted)
        if engine.max_model_len is not None and not keeps:  # seats cannot fill more
            for_full = min(for_full, further * needs.full_span * needs.full_bytes)
        full_blocks += for_full // needs.full_bytes
        further = min(further, full_blocks // needs.span - 1)
    rest = spare - for_full
    if needs.seat_bytes:
        further = min(further, rest // needs.seat_bytes)
    left, kept = rest - further * needs.seat_bytes, 0
    blocks: Blocks = {}
    if needs.window_bytes:
        more = min(left // needs.window_bytes, in_step)
        left -= more * needs.window_bytes
        blocks["sliding_window"] = 1 + (1 + further) * needs.span + more
    if drafts:
        kept = min(left // needs.slot_bytes, 1 + further, MOST_DRAFTS)
    if keeps and needs.slot_bytes:
        kept = (left // 2 if needs.window_bytes else left) // needs.slot_bytes
    if keeps and needs.window_bytes:
        blocks["sliding_window"] += (left - kept * needs.slot_bytes) // needs.window_bytes
    if needs.full_bytes:
        blocks["full"] = 1 + full_blocks
    return 1 + further, kept, blocks
