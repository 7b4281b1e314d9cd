"""A rank's kernels, where the reader of a partial sum adds what all ranks have.

Invariant: the results are those of the table that it is made of, behind `Group.add`; which sums are
fused follows from their rows alone, so all ranks decide alike.
"""

from functools import partial

from torch import Tensor

from plamo_ref.config import Plamo2Config
from plamo_ref.kernels.norm.triton_peers import peer_add_norm, peer_sum
from plamo_ref.kernels.ssm.selection import SelectionParams
from plamo_ref.kernels.table import Kernels
from plamo_ref.parallel.group import Group, TorchGroup, added
from plamo_ref.parallel.peers import Peers
from plamo_ref.quantization.weight import Activations


class FusedSums:
    """The two readers: of a mixer's or an MLP's last product, and of B, C and dt."""

    def __init__(self, peers: Peers, group: Group, plain: Kernels, *, pdl: bool) -> None:
        self._peers, self._group, self._plain = peers, group, plain
        self._sum = partial(peer_sum, memories=peers.memories, pdl=pdl)
        self._add_norm = partial(peer_add_norm, memories=peers.memories, pdl=pdl)

    @classmethod
    def of(
        cls, config: Plamo2Config, group: TorchGroup, plain: Kernels, *, pdl: bool = False
    ) -> Kernels:
        """`plain` with these readers; every rank of the stage comes here at the same time."""
        fused = cls(group.meet(widest_sum(config)), group, plain, pdl=pdl)
        return plain.but(add_norm=fused.add_norm, selection=fused.selection)

    def add_norm(
        self,
        residual: Tensor,
        x: Tensor,
        post_gain: Tensor,
        pre_gain: Tensor,
        eps: float,
        quantize: bool = False,
    ) -> tuple[Tensor, Activations]:
        if self._is_too_long(x):
            x = added(self._group, x)
            return self._plain.add_norm(residual, x, post_gain, pre_gain, eps, quantize)
        residual, normed = self._add_norm(residual, x, post_gain, pre_gain, eps)
        return residual, self._plain.quantize_tokens(normed) if quantize else normed

    def selection(self, bcdt: Tensor, params: SelectionParams) -> tuple[Tensor, Tensor, Tensor]:
        x = added(self._group, bcdt) if self._is_too_long(bcdt) else self._sum(bcdt)
        return self._plain.selection(x, params)

    def _is_too_long(self, x: Tensor) -> bool:
        """Many rows are a matter of bytes, not of messages: the ranks add them together."""
        return x.shape[1] > self._peers.memories.rows


def widest_sum(config: Plamo2Config) -> int:
    """Numbers in a row of what is added."""
    shapes = config.tensor_shapes
    narrow = [shape[0] for name, shape in shapes.items() if name.endswith("bcdt_proj.weight")]
    return max(config.hidden_size, *narrow[:1])
