"""Owns the memory that the plan describes and runs the model over it.

Invariant: the cache tensors are allocated once, and only the model writes them.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from plamo_ref.batch import AttentionCache, ForwardBatch, LayerCache, Room
from plamo_ref.engine.batching import Rows
from plamo_ref.engine.copies import copy_places
from plamo_ref.engine.memory.holding import Copy
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.page_views import paged_caches
from plamo_ref.kernels.ssm.narrow import mamba_cache
from plamo_ref.kernels.ssm.replay import new_ring
from plamo_ref.model import Plamo2Model


class Recordings(Protocol):
    """Steps that were recorded and can be replayed, each laid out in a batch of its own."""

    def place(self, room: Room) -> ForwardBatch | None:
        """The batch of a recording with at least so much room; None: there is none."""
        ...

    def replay(self, batch: ForwardBatch, rows: Rows) -> Tensor | None:
        """Logits [n, V] of a batch that `place` gave; None: it is another one."""
        ...


class RecordsAhead(Protocol):
    """Steps that can be recorded while nobody waits; each takes as long as a few steps."""

    def record_one(self) -> bool:
        """Record one more. False: nothing is left to do."""
        ...

    def record_for(self, seconds: float) -> bool:
        """Record so long. False: nothing is left to do."""
        ...


class ModelRunner:
    """A model and the caches of its layers."""

    def __init__(self, model: Plamo2Model, plan: MemoryPlan, state_dtype: torch.dtype) -> None:
        self.model = model
        self.caches = new_caches(model, plan, state_dtype)
        self._pitch = {} if plan.pages is None else plan.pages.pitch
        self.recordings: Recordings | None = None  # whoever builds the engine may bring some

    @property
    def device(self) -> torch.device:
        return self.model.embedding.device

    def place(self, room: Room) -> ForwardBatch:
        """Where a step with so much room is to be laid out."""
        batch = None if self.recordings is None else self.recordings.place(room)
        return ForwardBatch.empty(room, self.device) if batch is None else batch

    @torch.inference_mode()
    def copy(self, copies: list[Copy]) -> None:
        """Copy places of the caches, before the next step; what is copied leaves the list."""
        copy_places(self.caches, self.model.config.layer_kinds, copies, self._pitch)
        copies.clear()

    @torch.inference_mode()
    def run(self, batch: ForwardBatch, rows: Rows) -> Tensor:
        """Compute the batch's tokens. Returns the logits [n, V] of `rows`.

        Those of a recorded step stay valid until the next call.
        """
        logits = None if self.recordings is None else self.recordings.replay(batch, rows)
        if logits is not None:
            return logits
        return self.model.logits(self.model.forward(batch, self.caches)[rows])

    def check(self) -> None:
        """Raises EngineError: what was computed, which has been waited for, is worth nothing."""

    def close(self) -> None:
        """Give back what does not end with this object."""


def new_caches(
    model: Plamo2Model, plan: MemoryPlan, state_dtype: torch.dtype
) -> Sequence[LayerCache]:
    """The memory of each layer, filled with zeros."""
    config, weight = model.config, model.embedding
    if plan.pages is not None:
        kept = (plan.stochastic, plan.kv_dtype, plan.replay)
        return paged_caches(config, plan.pages, plan.block_size, weight, state_dtype, *kept)
    heads, size = config.mamba_num_heads, config.hidden_size_per_head
    caches: list[LayerCache] = []
    for kind in config.layer_kinds:
        if kind == "mamba":
            conv = (plan.num_slots, config.mamba_inner_size, config.mamba_d_conv - 1)
            ssm = (plan.num_slots, heads, size, config.mamba_d_state)
            parts = (weight.new_zeros(conv), weight.new_zeros(ssm, dtype=state_dtype))
            ring = new_ring(config, plan.replay, weight, plan.num_slots)
            caches.append(mamba_cache(*parts, plan.stochastic, ring=ring))
        else:
            blocks = plan.num_blocks[kind]
            shape = (blocks, plan.block_size, config.num_key_value_heads, size)
            both = (weight.new_zeros(shape, dtype=plan.kv_dtype) for _ in ("keys", "values"))
            caches.append(AttentionCache(*both))
    return tuple(caches)
