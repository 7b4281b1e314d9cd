"""Products with a weight, whole, in parts still to be added, or with SwiGLU at the end.

    linear(x, W)         x Wᵀ                               x [T, in], W [out, in]
    linear_parts(x, W)   partial sums of x Wᵀ: [parts, T, out]; `whole` adds them
    linear_swiglu(x, W)  silu(x Gᵀ) · (x Uᵀ)                W = [G; U] [2F, in]

A narrow W has too few rows to keep a GPU busy, so its columns are shared out as well. The parts are
then not worth a launch of their own: whoever reads the product adds them on the way.

Invariant: parts are added in at least float32 and rounded once to the dtype of x, so a reader
sees the same numbers, up to the order of additions, whether a product came whole or in parts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from plamo_ref.kernels.linear.swiglu import swiglu


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, in], weight [out, in] → [T, out]."""
    return F.linear(x, weight)


def linear_parts(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, in], weight [out, in] → [parts, T, out]; the twin makes one part."""
    return F.linear(x, weight)[None]


def linear_swiglu(x: Tensor, weight: Tensor) -> Tensor:
    """x [T, in], weight [2F, in], gate rows first → [T, F]."""
    return swiglu(F.linear(x, weight))


def whole(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[T, out], or parts of it [parts, T, out] → [T, out] in `dtype`."""
    return x if x.dim() == 2 else x.sum(0).to(dtype)
