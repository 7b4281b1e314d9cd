"""The one place that knows how the weight of a projection is stored.

Invariant: every projection of the served model is a `Linear`; how its weight is cut over GPUs or
quantized can change here without the model knowing.
"""

from dataclasses import dataclass

from torch import Tensor

from plamo_ref.kernels.table import Kernels
from plamo_ref.quantization.weight import Activations, QuantizedWeight, Weight


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ.

    Attributes:
        weight: [out, in], as in the checkpoint, or quantized.
    """

    weight: Weight
    ops: Kernels

    def __call__(self, x: Tensor) -> Tensor:
        """[T, in] → [T, out]."""
        if isinstance(self.weight, QuantizedWeight):
            return self.ops.quantized_linear(self.quantized(x), self.weight)
        return self.ops.linear(x, self.weight)

    def parts(self, x: Tensor) -> Tensor:
        """[T, in] → partial sums [parts, T, out], for readers that add them on the way."""
        if isinstance(self.weight, QuantizedWeight):
            return self.ops.quantized_linear_parts(self.quantized(x), self.weight)
        return self.ops.linear_parts(x, self.weight)

    def swiglu(self, x: Tensor) -> Tensor:
        """[T, in] → SwiGLU of the product, [T, out / 2]; gate rows come first."""
        if isinstance(self.weight, QuantizedWeight):
            return self.ops.quantized_linear_swiglu(self.quantized(x), self.weight)
        return self.ops.linear_swiglu(x, self.weight)

    def quantized(self, x: Tensor) -> Activations:
        """x as the product with a quantized weight wants it."""
        assert isinstance(self.weight, QuantizedWeight)
        return self.ops.quantize_tokens(x) if self.weight.quantized_activations else x
