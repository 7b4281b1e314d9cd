"""The slow truth: PLaMo 2 in plain torch, for reading, for proofs and for training.

Invariant: the result of a token depends only on the tokens before it, so feeding a sequence in any
number of pieces, with the `SequenceState` carried along, equals feeding it whole.
Built in notebooks/04_reference_generation.ipynb.

Everything works in any dtype up to float64 and for any leading batch dimensions, written `...`.
Module and parameter names are those of the checkpoint; the semantics are those of Preferred
Networks' own Hugging Face code. Shape letters: T tokens, D hidden, H heads, P head size, N state
size, K conv width, W window, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plamo_ref.config import Plamo2Config
from plamo_ref.intake.hub import find
from plamo_ref.reference.attention import Attention, AttentionState
from plamo_ref.reference.functions import rms_norm
from plamo_ref.reference.mamba import Mamba, MambaState
from plamo_ref.weights.checkpoint import Checkpoint


@dataclass
class SequenceState:
    """The memory of one sequence (or of one batch of equally long ones)."""

    layers: Sequence[MambaState | AttentionState | None]  # None: no token yet
    num_tokens: int = 0


@dataclass
class ReferenceOutput:
    logits: Tensor  # [..., T, V]
    layer_inputs: list[Tensor]  # L tensors [..., T, D]; the first is the embedding
    final_hidden: Tensor  # [..., T, D] after the last norm
    state: SequenceState


class RMSNorm(nn.Module):
    """RMS norm whose gain is stored minus `offset`, so that weight decay pulls it to `offset`."""

    def __init__(self, size: int, offset: float, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.offset, self.eps = offset, eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight + self.offset, self.eps)


class MLP(nn.Module):
    """SwiGLU: silu(gate) · up, projected down."""

    def __init__(self, config: Plamo2Config) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Layer(nn.Module):
    """A mixer and an MLP, each between two norms, each added to the residual stream."""

    def __init__(self, config: Plamo2Config, index: int, *, chunked: bool) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.mixer: Mamba | Attention = (
            Mamba(config, chunked=chunked) if config.is_mamba(index) else Attention(config, index)
        )
        self.mlp = MLP(config)
        self.pre_mixer_norm = RMSNorm(size, 1.0, eps)
        self.post_mixer_norm = RMSNorm(size, 1.0 / 5, eps)
        self.pre_mlp_norm = RMSNorm(size, 1.0, eps)
        self.post_mlp_norm = RMSNorm(size, 1.0 / 5**1.5, eps)

    def forward(
        self, hidden: Tensor, state: MambaState | AttentionState | None, start: int
    ) -> tuple[Tensor, MambaState | AttentionState]:
        """hidden [..., T, D] at positions start, start + 1, … → the same shape, and the state."""
        new: MambaState | AttentionState
        normed = self.pre_mixer_norm(hidden)
        mixed, new = self.mixer(normed, state, start)
        hidden = hidden + self.post_mixer_norm(mixed)
        return hidden + self.post_mlp_norm(self.mlp(self.pre_mlp_norm(hidden))), new


class Embedding(nn.Module):
    """A row for each token. Not initialised: weights come from a file or from training."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, size))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Decoder(nn.Module):
    """Embedding, layers, last norm: what the checkpoint calls `model`."""

    def __init__(self, config: Plamo2Config, *, chunked: bool) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        layers = (Layer(config, i, chunked=chunked) for i in range(config.num_hidden_layers))
        # The checkpoint's names say "layers" twice.
        self.layers = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.norm = RMSNorm(config.hidden_size, 1.0, config.rms_norm_eps)

    def blocks(self) -> Iterator[nn.Module]:
        """The layers, first to last."""
        yield from self.layers["layers"].children()


class Plamo2Reference(nn.Module):
    """`model(ids)` → logits; `model.run(ids, state)` → also layer inputs and the state.

    Args:
        config: the model's shape.
        chunked: scan in chunks (fast, the default) or token by token (the definition).
    """

    def __init__(self, config: Plamo2Config, *, chunked: bool = True) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, chunked=chunked)
        self.lm_head: nn.Linear | None = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.lm_head_rows, bias=False)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        dtype: torch.dtype = torch.float32,
        *,
        device: str | torch.device = "cpu",
        chunked: bool = True,
        progress: bool = False,
    ) -> "Plamo2Reference":
        """Load "tiny", a checkpoint folder or a hub id, casting tensor by tensor.

        Raises:
            CheckpointError: something about the checkpoint is wrong; the message says what.
        """
        checkpoint = Checkpoint.open(find(model))
        with torch.device("meta"):  # allocate nothing: every tensor comes from the file
            reference = cls(checkpoint.config, chunked=chunked)
        weights = dict(checkpoint.tensors(dtype=dtype, device=device, progress=progress))
        reference.load_state_dict(weights, assign=True)
        return reference

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [..., T] → logits [..., T, V] in the weights' dtype."""
        return self.run(ids).logits

    def run(self, ids: Tensor, state: SequenceState | None = None) -> ReferenceOutput:
        """Feed ids [..., T] after the tokens that `state` remembers (None: from the start).

        `state` is not modified; the new one is in the result.
        """
        state = state or SequenceState([None] * self.config.num_hidden_layers)
        hidden = self.model.embed_tokens(ids)  # [..., T, D]
        inputs, layers = [], []
        for layer, old in zip(self.model.blocks(), state.layers, strict=True):
            inputs.append(hidden)
            hidden, new = layer(hidden, old, state.num_tokens)
            layers.append(new)
        final = self.model.norm(hidden)
        head = self.model.embed_tokens if self.lm_head is None else self.lm_head
        logits = F.linear(final, head.weight)[..., : self.config.vocab_size]
        state = SequenceState(layers, state.num_tokens + ids.shape[-1])
        return ReferenceOutput(logits, inputs, final, state)
