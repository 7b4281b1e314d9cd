"""Owns the memory that the plan describes and runs the model over it.

Invariant: the cache tensors are allocated once, and only the model writes them.
"""

import torch
from torch import Tensor

from plamo_ref.batch import AttentionCache, ForwardBatch, LayerCache, MambaCache
from plamo_ref.engine.graphs import DecodeGraphs
from plamo_ref.engine.mixed_graphs import MixedGraphs
from plamo_ref.engine.planner import MemoryPlan
from plamo_ref.model import Plamo2Model


class ModelRunner:
    """A model and the caches of its layers."""

    def __init__(
        self,
        model: Plamo2Model,
        plan: MemoryPlan,
        state_dtype: torch.dtype,
        *,
        cuda_graphs: bool = False,
        graph_tokens: int = 0,
    ) -> None:
        self.model = model
        config, weight = model.config, model.embedding
        heads, size = config.mamba_num_heads, config.hidden_size_per_head
        caches: list[LayerCache] = []
        for kind in config.layer_kinds:
            if kind == "mamba":
                conv = (plan.num_slots, config.mamba_inner_size, config.mamba_d_conv - 1)
                ssm = (plan.num_slots, heads, size, config.mamba_d_state)
                caches.append(
                    MambaCache(weight.new_zeros(conv), weight.new_zeros(ssm, dtype=state_dtype))
                )
            else:
                blocks = plan.num_blocks[kind]
                shape = (blocks, plan.block_size, config.num_key_value_heads, size)
                caches.append(AttentionCache(weight.new_zeros(shape), weight.new_zeros(shape)))
        self.caches = tuple(caches)
        self._decode_graphs: DecodeGraphs | None = None
        self._mixed_graphs: MixedGraphs | None = None
        # The torch twins read lengths back to the host, which no graph can record.
        if cuda_graphs and self.device.type == "cuda" and model.ops.name != "torch":
            self._decode_graphs = DecodeGraphs(self._step, plan, self.device)
            if graph_tokens:
                self._mixed_graphs = MixedGraphs(self._forward, plan, self.device, graph_tokens)

    @property
    def device(self) -> torch.device:
        return self.model.embedding.device

    @torch.inference_mode()
    def run(self, batch: ForwardBatch) -> Tensor:
        """Compute the batch's tokens. Returns logits [n, V] of its `logits_rows`.

        With CUDA graphs they stay valid until the next call.
        """
        if batch.has_prefills:
            hidden = None if self._mixed_graphs is None else self._mixed_graphs.run(batch)
            return self._step(batch) if hidden is None else self.model.logits(hidden)
        logits = None if self._decode_graphs is None else self._decode_graphs.run(batch)
        return self._step(batch) if logits is None else logits

    def _forward(self, batch: ForwardBatch) -> Tensor:
        return self.model.forward(batch, self.caches)  # [T, D]

    def _step(self, batch: ForwardBatch) -> Tensor:
        hidden = self._forward(batch)
        return self.model.logits(hidden if batch.rows_in_order else hidden[batch.logits_rows])
