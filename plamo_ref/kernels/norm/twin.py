"""RMS norm, alone and fused with the residual stream.

    rms_norm(x, g)       x / sqrt(mean(x²) + eps) · g                       x [T, D], g [D]
    add_norm(r, x, p, g) r' = r + rms_norm(x, p);  return r', rms_norm(r', g)

`add_norm` is the seam between two sub-layers of PLaMo 2: the post-norm of the one, the residual
addition and the pre-norm of the other read and write the stream once instead of three times.

Invariant: statistics in at least float32; the normalised x is rounded to its own dtype before the
gain is applied, as in the published model. Gains come with their offset already added.
"""

import torch
from torch import Tensor

from plamo_ref.kernels.linear.quantized import quantize_tokens
from plamo_ref.kernels.linear.twin import whole
from plamo_ref.quantization.weight import Activations


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Over the last dimension of x, which has any shape; gain must broadcast against x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * gain


def add_norm(
    residual: Tensor,
    x: Tensor,
    post_gain: Tensor,
    pre_gain: Tensor,
    eps: float,
    quantize: bool = False,
) -> tuple[Tensor, Activations]:
    """residual [T, D], x [T, D] or parts of it [parts, T, D] → new residual, its norm: [T, D].

    Args:
        quantize: the norm as `quantize_tokens` leaves it, for a product that wants it so.
    """
    x = whole(x, residual.dtype)
    residual = residual + rms_norm(x, post_gain, eps)
    normed = rms_norm(residual, pre_gain, eps)
    return residual, quantize_tokens(normed) if quantize else normed
