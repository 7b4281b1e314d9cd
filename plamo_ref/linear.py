"""The one place that knows how the weight of a projection is stored.

Invariant: every projection of the served model is a `Linear`; how its weight is cut over GPUs or
compressed can change here without the model knowing.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ.

    Attributes:
        weight: [out, in], as in the checkpoint.
    """

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        return F.linear(x, self.weight)
