"""What layers are made of, to be cut by hand: an MLP, an attention, a Mamba, small and random.

Invariant: a rank's part is the reference's own, of a config with fewer heads; it refuses a tensor
of any other shape, and knows nothing of how tensors are cut.
Used by lesson 14.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plamo_ref.config import Plamo2Config
from plamo_ref.parallel.cut import of_rank, pieces, rule_of
from plamo_ref.reference.attention import Attention
from plamo_ref.reference.mamba import Mamba
from plamo_ref.reference.model import MLP

Weights = dict[str, Tensor]  # names as in the checkpoint, behind the part's own
Cut = Callable[[Weights, int, int], Weights]  # of a part, rank, number of ranks → the rank's

PLACES = {"MLP": "1.mlp", "attention": "1.mixer", "Mamba": "0.mixer"}
TRIED = ((0, 2), (1, 2), (0, 4), (1, 4), (2, 4), (3, 4))  # rank, and number of ranks
SMALL = Plamo2Config(
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_size_per_head=6,
    attention_window_size=5,
    mamba_num_heads=4,
    mamba_d_state=8,
    intermediate_size=20,
    vocab_size=64,
)


def module_of(name: str, config: Plamo2Config) -> nn.Module:
    """The reference's "MLP", "attention" or "Mamba" of this size, in float64."""
    if name == "MLP":
        return MLP(config).double()
    if name == "attention":
        return Attention(config, 1).double()
    return Mamba(config, chunked=False).double()


def package_cut(config: Plamo2Config, name: str) -> Cut:
    """How `parallel/cut.py` cuts a part of this model."""

    def cut(weights: Weights, rank: int, size: int) -> Weights:
        own = {}
        for key, tensor in weights.items():
            full = f"model.layers.layers.{PLACES[name]}.{key}"
            found = [tensor[index] for index in pieces(config, full, rank, size)]
            own[key] = torch.cat(found, rule_of(full).axis or 0)
        return own

    return cut


@dataclass(frozen=True)
class Parts:
    """Weights of the three parts, and tokens for them.

    Attributes:
        weights: of "MLP", "attention" and "Mamba".
        x: [T, D]
    """

    config: Plamo2Config
    weights: Mapping[str, Weights]
    x: Tensor

    @classmethod
    def random(cls, seed: int, tokens: int = 9) -> "Parts":
        """Numbers without any symmetry, so that no mistake can hide behind one."""
        draw = torch.Generator().manual_seed(seed)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, dtype=torch.float64) / shape[-1] ** 0.5

        shapes = {name: cls._shapes(name, SMALL) for name in PLACES}
        weights = {n: {k: numbers(*s) for k, s in parts.items()} for n, parts in shapes.items()}
        return cls(SMALL, weights, numbers(tokens, SMALL.hidden_size))

    @staticmethod
    def _shapes(name: str, config: Plamo2Config) -> dict[str, tuple[int, ...]]:
        return {k: tuple(t.shape) for k, t in module_of(name, config).state_dict().items()}

    def shapes(self, name: str, size: int) -> dict[str, tuple[int, ...]]:
        """Of the tensors of one of `size` ranks."""
        return self._shapes(name, of_rank(self.config, 0, size))

    def says(self, name: str, weights: Weights, size: int = 1) -> Tensor:
        """What one of `size` ranks says to `x` with these weights: [T, D].

        Raises:
            RuntimeError: a tensor that is missing, or of a wrong shape.
        """
        part = module_of(name, of_rank(self.config, 0, size))
        part.load_state_dict(weights)
        with torch.no_grad():
            said: Tensor = part(self.x) if name == "MLP" else part(self.x, None, 0)[0]
        return said

    def whole(self, name: str) -> Tensor:
        """What the uncut part says."""
        return self.says(name, self.weights[name])

    def added(self, name: str, cut: Cut, size: int) -> Tensor:
        """What `size` ranks say, added."""
        weights = [cut(self.weights[name], rank, size) for rank in range(size)]
        return torch.stack([self.says(name, each, size) for each in weights]).sum(0)

    def tried(self, name: str, cut: Cut) -> dict[str, Weights]:
        """What a cut gives to each of two ranks, and of four; it may change its dict."""
        return {f"rank {r} of {n}": cut(dict(self.weights[name]), r, n) for r, n in TRIED}

    def by_package(self, name: str, change: Cut | None = None) -> dict[str, Weights]:
        """What the package gives to each of them, with the tensors changed that `change` gives."""
        found = self.tried(name, package_cut(self.config, name))
        changed = self.tried(name, change) if change else {}
        return {rank: own | changed.get(rank, {}) for rank, own in found.items()}
