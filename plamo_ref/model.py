"""The served model: the tokens of many requests in, hidden states out.

Invariant: it holds weights, and the table of kernels that reads them, and nothing else; the
requests' memory, and where each token belongs in it, are arguments. It computes what
`plamo_ref.reference` computes.
Built in notebooks/07_continuous_batching.ipynb.

Shape letters: T tokens of the step, R requests, D hidden, H heads, G KV heads, P head size, N state
size, K conv width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar

from torch import Tensor

from plamo_ref.batch import AttentionCache, ForwardBatch, LayerCache, MambaCache
from plamo_ref.config import LayerKind, Plamo2Config
from plamo_ref.kernels.ssm.selection import SelectionParams
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams
from plamo_ref.kernels.table import Kernels
from plamo_ref.linear import Linear
from plamo_ref.quantization.weight import Activations


@dataclass(frozen=True)
class Attention:
    """QK-norm, RoPE, and attention over the blocks of the layer's group."""

    kind: LayerKind
    window: int | None
    qkv_proj: Linear
    o_proj: Linear
    q_gain: Tensor  # [H, P]
    k_gain: Tensor  # [G, P]
    ops: Kernels

    @property
    def takes_quantized(self) -> bool:
        """Whether x may come quantized."""
        return self.qkv_proj.takes_quantized

    def __call__(
        self, x: Activations, batch: ForwardBatch, cache: LayerCache, tables: Tensor
    ) -> Tensor:
        """x [T, D] → [parts, T, D]; writes the new keys and values into the cache."""
        assert isinstance(cache, AttentionCache)
        q = self.ops.qk_norm_rope_write(
            self.qkv_proj.parts(x),
            self.q_gain,
            self.k_gain,
            tables,
            cache.keys,
            cache.values,
            batch.groups[self.kind].slot_mapping,
        )  # [T, H, P]
        y = self.ops.attend(q, self.kind, self.window, batch, cache)
        return self.o_proj.parts(y.flatten(1))


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
    ops: Kernels

    @property
    def takes_quantized(self) -> bool:
        """Whether x may come quantized."""
        return self.in_proj.takes_quantized

    def __call__(
        self, x: Activations, batch: ForwardBatch, cache: LayerCache, tables: Tensor
    ) -> Tensor:
        """x [T, D] → [parts, T, D]; moves the states of the batch's slots forward."""
        assert isinstance(cache, MambaCache)
        # Interleaved per head: P gate channels z, then P input channels.
        z, u = self.in_proj(x).unflatten(-1, (-1, 2, self.head_size)).unbind(-2)  # [T, H, P]
        u = self.ops.convolve(u, self.conv_weight, batch, cache.conv)  # [T, H·P]
        B, C, dt = self.ops.selection(self.bcdt_proj.parts(u), self.selection)
        inputs = ScanInputs(u=u.unflatten(-1, (-1, self.head_size)), z=z, dt=dt, B=B, C=C)
        y = self.ops.scan(inputs, self.scan, batch, cache)
        return self.out_proj.parts(y.flatten(1))


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
    eps: float
    ops: Kernels

    def __call__(
        self,
        residual: Tensor,
        x: Activations,
        next_gain: Tensor,
        quantize: bool,
        batch: ForwardBatch,
        cache: LayerCache,
        tables: Tensor,
    ) -> tuple[Tensor, Activations]:
        """The stream and its norm, both [T, D] → those of the next layer, whose gain is given, and
        whether it takes the norm quantized.

        A layer ends where the next one's first norm begins: one fused step does both.
        """
        add_norm, eps, gate_up = self.ops.add_norm, self.eps, self.gate_up_proj
        mixed = self.mixer(x, batch, cache, tables)
        gains = self.post_mixer_gain, self.pre_mlp_gain
        residual, x = add_norm(residual, mixed, *gains, eps, gate_up.takes_quantized)
        mixed = self.down_proj.parts(gate_up.swiglu(x, self.down_proj.takes_quantized))
        return add_norm(residual, mixed, self.post_mlp_gain, next_gain, eps, quantize)


LayerCall = Callable[..., tuple[Tensor, Activations]]  # as Layer.__call__
# A step's batch → as compiled layers see it, and they themselves.
Compiled = Callable[[ForwardBatch], tuple[ForwardBatch, Sequence[LayerCall]]]


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
        self.compiled: Compiled | None = None  # whoever builds the engine may bring it

    def forward(self, batch: ForwardBatch, caches: Sequence[LayerCache]) -> Tensor:
        """The batch's tokens through all layers → [T, D] after the last norm."""
        return self.through_layers(self.embedding[batch.token_ids], batch, caches)[1]

    def through_layers(
        self, residual: Tensor, batch: ForwardBatch, caches: Sequence[LayerCache]
    ) -> tuple[Tensor, Tensor]:
        """The stream [T, D] before the first layer → behind the last one, and its norm."""
        tables = self._rope_tables(batch.positions)
        next_gains = [layer.pre_mixer_gain for layer in self.layers[1:]] + [self.norm_gain]
        first = self.layers[0].pre_mixer_gain
        x: Activations = self.ops.rms_norm(residual, first, self.config.rms_norm_eps)
        calls: Sequence[LayerCall] = self.layers
        quantize = [layer.mixer.takes_quantized for layer in self.layers[1:]] + [False]
        if self.compiled is not None:  # what a compiled layer is given is plain
            batch, calls = self.compiled(batch)
            quantize = [False] * len(calls)
        for index, call in enumerate(calls):
            table, cache = tables[self.config.theta(index)], caches[index]
            seam = next_gains[index], quantize[index]
            residual, x = call(residual, x, *seam, batch, cache, table)
        assert isinstance(x, Tensor)
        return residual, x

    def with_ops(self, ops: Kernels) -> "Plamo2Model":
        """The same weights on another table."""
        layers, head = [with_ops(layer, ops) for layer in self.layers], with_ops(self.lm_head, ops)
        return Plamo2Model(self.config, self.embedding, layers, self.norm_gain, head, ops)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, D] → [n, V]."""
        return self.lm_head(hidden)[:, : self.config.vocab_size]

    def _rope_tables(self, positions: Tensor) -> dict[float, Tensor]:
        """cos and sin for each RoPE base of the model."""
        config = self.config
        thetas = {config.theta(i) for i in range(config.num_hidden_layers)}
        size, dtype = config.hidden_size_per_head, self.embedding.dtype
        return {theta: self.ops.rope_tables(positions, size, theta, dtype) for theta in thetas}


Part = TypeVar("Part", Linear, Attention, Mamba, Layer)


def with_ops(part: Part, ops: Kernels) -> Part:
    """A copy of a layer, or of a part of one, that runs on another table."""
    parts: dict[str, Any] = {f.name: getattr(part, f.name) for f in fields(part)}
    for name, inner in parts.items():
        if name != "ops" and is_dataclass(inner) and hasattr(inner, "ops"):
            parts[name] = with_ops(inner, ops)  # type: ignore[type-var]
    return type(part)(**parts | {"ops": ops})
