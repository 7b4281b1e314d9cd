"""The one place that knows how the weight of a projection is stored.

Invariant: every projection of the served model is a `Linear`; how its weight is cut over GPUs or
quantized can change here without the model knowing.
"""

from dataclasses import dataclass

from torch import Tensor

from plamo_ref.kernels.table import Kernels
from plamo_ref.quantization.weight import Activations, QuantizedTokens, QuantizedWeight, Weight


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ.

    Attributes:
        weight: [out, in], as in the checkpoint, or quantized.
    """

    weight: Weight
    ops: Kernels

    @property
    def takes_quantized(self) -> bool:
        """Whether whoever makes x may quantize it: as the product wants it, and by whole rows."""
        return isinstance(self.weight, QuantizedWeight) and self.weight.quantized_activations

    def __call__(self, x: Activations) -> Tensor:
        """[T, in] → [T, out]."""
        if isinstance(self.weight, QuantizedWeight):
            return self.ops.quantized_linear(self.quantized(x), self.weight)
        assert isinstance(x, Tensor)
        return self.ops.linear(x, self.weight)

    def parts(self, x: Activations) -> Tensor:
        """[T, in] → partial sums [parts, T, out], for readers that add them on the way."""
        if isinstance(self.weight, QuantizedWeight):
            return self.ops.quantized_linear_parts(self.quantized(x), self.weight)
        assert isinstance(x, Tensor)
        return self.ops.linear_parts(x, self.weight)

    def swiglu(self, x: Activations, quantize: bool = False) -> Activations:
        """[T, in] → SwiGLU of the product, [T, out / 2]; gate rows come first.

        Args:
            quantize: the reader takes it quantized; a plain weight leaves that to the reader.
        """
        if isinstance(self.weight, QuantizedWeight):
            return self.ops.quantized_linear_swiglu(self.quantized(x), self.weight, quantize)
        assert isinstance(x, Tensor)
        return self.ops.linear_swiglu(x, self.weight)

    def quantized(self, x: Activations) -> Activations:
        """x as the product with a quantized weight wants it, if it is not already so."""
        if isinstance(x, QuantizedTokens) or not self.takes_quantized:
            return x
        return self.ops.quantize_tokens(x)
