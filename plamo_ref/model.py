"""The served model: the tokens of many requests in, hidden states out.

Invariant: it holds weights and nothing else; the requests' memory, and where each token belongs in
it, are arguments. It computes what `plamo_ref.reference` computes.
Built in notebooks/07_continuous_batching.ipynb.

Shape letters: T tokens of the step, R requests, D hidden, H heads, G KV heads, P head size, N state
size, K conv width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from plamo_ref.batch import AttentionCache, ForwardBatch, LayerCache, MambaCache, join
from plamo_ref.config import LayerKind, Plamo2Config
from plamo_ref.kernels.selection import SelectionParams
from plamo_ref.kernels.ssm import ScanInputs, ScanParams
from plamo_ref.kernels.table import Kernels
from plamo_ref.linear import Linear


@dataclass(frozen=True)
class Attention:
    """QK-norm, RoPE, and attention over the blocks of the layer's group."""

    kind: LayerKind
    window: int | None
    qkv_proj: Linear
    o_proj: Linear
    q_gain: Tensor  # [H, P]
    k_gain: Tensor  # [G, P]

    def __call__(
        self, x: Tensor, batch: ForwardBatch, cache: LayerCache, tables: Tensor, ops: Kernels
    ) -> Tensor:
        """x [T, D] → [parts, T, D]; writes the new keys and values into the cache."""
        assert isinstance(cache, AttentionCache)
        group, keys, values = batch.groups[self.kind], cache.keys, cache.values
        q = ops.qk_norm_rope_write(
            self.qkv_proj.parts(x, ops),
            self.q_gain,
            self.k_gain,
            tables,
            keys,
            values,
            group.slot_mapping,
        )  # [T, H, P]
        return self.o_proj.parts(self._attend(q, batch, cache, ops).flatten(1), ops)

    def _attend(
        self, q: Tensor, batch: ForwardBatch, cache: AttentionCache, ops: Kernels
    ) -> Tensor:
        return attend(q, self.kind, self.window, batch, cache, ops)


@dataclass(frozen=True)
class Mamba:
    """Convolution and scan, each continuing from the requests' state slots."""

    head_size: int
    in_proj: Linear
    conv_weight: Tensor  # [H·P, K]
    bcdt_proj: Linear
    selection: SelectionParams
    scan: ScanParams
    out_proj: Linear

    def __call__(
        self, x: Tensor, batch: ForwardBatch, cache: LayerCache, tables: Tensor, ops: Kernels
    ) -> Tensor:
        """x [T, D] → [parts, T, D]; moves the states of the batch's slots forward."""
        assert isinstance(cache, MambaCache)
        # Interleaved per head: P gate channels z, then P input channels.
        z, u = self.in_proj(x, ops).unflatten(-1, (-1, 2, self.head_size)).unbind(-2)  # [T, H, P]
        u = self._convolve(u, batch, cache.conv, ops)  # [T, H·P]
        B, C, dt = ops.selection(self.bcdt_proj.parts(u, ops), self.selection)
        inputs = ScanInputs(u=u.unflatten(-1, (-1, self.head_size)), z=z, dt=dt, B=B, C=C)
        y = self._scan(inputs, batch, cache.ssm, ops)
        return self.out_proj.parts(y.flatten(1), ops)

    def _convolve(self, u: Tensor, batch: ForwardBatch, cache: Tensor, ops: Kernels) -> Tensor:
        return convolve(u, self.conv_weight, batch, cache, ops)

    def _scan(self, inputs: ScanInputs, batch: ForwardBatch, cache: Tensor, ops: Kernels) -> Tensor:
        return scan(inputs, self.scan, batch, cache, ops)


@dataclass(frozen=True)
class Layer:
    """A mixer and an MLP. Gains have their offsets added."""

    mixer: Attention | Mamba
    gate_up_proj: Linear
    down_proj: Linear
    pre_mixer_gain: Tensor  # [D], as the other three
    post_mixer_gain: Tensor
    pre_mlp_gain: Tensor
    post_mlp_gain: Tensor

    def __call__(
        self,
        residual: Tensor,
        x: Tensor,
        next_gain: Tensor,
        batch: ForwardBatch,
        cache: LayerCache,
        tables: Tensor,
        ops: Kernels,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        """The stream and its norm, both [T, D] → those of the next layer, whose gain is given.

        A layer ends where the next one's first norm begins: one fused step does both.
        """
        mixed = self.mixer(x, batch, cache, tables, ops)
        residual, x = ops.add_norm(residual, mixed, self.post_mixer_gain, self.pre_mlp_gain, eps)
        x = self.down_proj.parts(self.gate_up_proj.swiglu(x, ops), ops)
        return ops.add_norm(residual, x, self.post_mlp_gain, next_gain, eps)


# --- a batch has two parts, each with its own kernels: decodes, then prefills ---------------------


def attend(
    q: Tensor,
    kind: LayerKind,
    window: int | None,
    batch: ForwardBatch,
    cache: AttentionCache,
    ops: Kernels,
) -> Tensor:
    """q [T, H, P] over the requests' keys and values, the new ones included → [T, H, P]."""
    group, keys, values = batch.groups[kind], cache.keys, cache.values
    decoded = prefilled = None
    if batch.num_decodes:
        rows = batch.decodes
        decoded = ops.paged_decode(
            q[rows],
            keys,
            values,
            group.block_table[rows],
            group.first_block[rows],
            batch.seq_lens[rows],
            window,
        )
    if batch.has_prefills:
        rows = batch.prefills
        prefilled = ops.paged_prefill(
            q[batch.num_decodes :],
            keys,
            values,
            group.block_table[rows],
            group.first_block[rows],
            batch.seq_lens[rows],
            batch.prefill_start_loc,
            window,
        )
    return join(decoded, prefilled)


def convolve(u: Tensor, weight: Tensor, batch: ForwardBatch, cache: Tensor, ops: Kernels) -> Tensor:
    """u [T, H, P] → [T, H·P]; moves the slots' last inputs forward."""
    decoded = prefilled = None
    first = batch.num_decodes
    if first:
        decoded = ops.conv_update(u[:first], weight, cache, batch.state_slots[batch.decodes])
    if batch.has_prefills:
        rows = batch.prefills
        prefilled = ops.conv_prefill(
            u[first:],
            weight,
            cache,
            batch.state_slots[rows],
            batch.prefill_start_loc,
            batch.has_past[rows],
        )
    return join(decoded, prefilled)


def scan(
    inputs: ScanInputs, params: ScanParams, batch: ForwardBatch, cache: Tensor, ops: Kernels
) -> Tensor:
    """→ [T, H, P]; moves the slots' states forward."""
    decoded = prefilled = None
    first = batch.num_decodes
    if first:
        slots = batch.state_slots[batch.decodes]
        decoded = ops.state_update(inputs.rows(slice(0, first)), params, cache, slots)
    if batch.has_prefills:
        rows = batch.prefills
        prefilled = ops.scan_prefill(
            inputs.rows(slice(first, None)),
            params,
            cache,
            batch.state_slots[rows],
            batch.prefill_start_loc,
            batch.has_past[rows],
        )
    return join(decoded, prefilled)


class Plamo2Model:
    """Embedding, layers, last norm and the vocabulary projection."""

    def __init__(
        self,
        config: Plamo2Config,
        embedding: Tensor,
        layers: Sequence[Layer],
        norm_gain: Tensor,
        lm_head: Linear,
        ops: Kernels,
    ) -> None:
        self.config, self.ops = config, ops
        self.embedding, self.layers = embedding, tuple(layers)
        self.norm_gain, self.lm_head = norm_gain, lm_head

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        """The batch's tokens through all layers → [T, D] after the last norm."""
        ops, eps = self.ops, self.config.rms_norm_eps
        tables = self._rope_tables(batch.positions)
        residual = self.embedding[batch.token_ids]  # [T, D]
        next_gains = [layer.pre_mixer_gain for layer in self.layers[1:]] + [self.norm_gain]
        x = ops.rms_norm(residual, self.layers[0].pre_mixer_gain, eps)
        for index, layer in enumerate(self.layers):
            table, cache = tables[self.config.theta(index)], caches[index]
            residual, x = layer(residual, x, next_gains[index], batch, cache, table, ops, eps)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, D] → [n, V]."""
        return self.lm_head(hidden, self.ops)[:, : self.config.vocab_size]

    def _rope_tables(self, positions: Tensor) -> dict[float, Tensor]:
        """cos and sin for each RoPE base of the model."""
        config = self.config
        thetas = {config.theta(i) for i in range(config.num_hidden_layers)}
        size, dtype = config.hidden_size_per_head, self.embedding.dtype
        return {theta: self.ops.rope_tables(positions, size, theta, dtype) for theta in thetas}
