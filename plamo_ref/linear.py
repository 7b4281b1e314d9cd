"""The one place that knows how the weight of a projection is stored.

Invariant: every projection of the served model is a `Linear`; how its weight is cut over GPUs or
compressed can change here without the model knowing.
"""

from dataclasses import dataclass

from torch import Tensor

from plamo_ref.kernels.table import Kernels


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ.

    Attributes:
        weight: [out, in], as in the checkpoint.
    """

    weight: Tensor
    ops: Kernels

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] → [T, out]."""
        return self.ops.linear(x, self.weight)

    def parts(self, x: Tensor) -> Tensor:
        """[T, in] → partial sums [parts, T, out], for readers that add them on the way."""
        return self.ops.linear_parts(x, self.weight)

    def swiglu(self, x: Tensor) -> Tensor:
        """[T, in] → SwiGLU of the product, [T, out / 2]; gate rows come first."""
        return self.ops.linear_swiglu(x, self.weight)
