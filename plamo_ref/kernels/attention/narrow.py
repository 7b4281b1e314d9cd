"""Keys and values kept as e4m3, without a scale: what is kept is the nearest of its numbers.

A key is a norm's result times a gain, rotated, so a head's numbers are about 1 each; values are of
that order. e4m3 has numbers from 2 to the -9th to 448 with a relative error of 1/16 at most, so a
scale would help the numbers near its ends alone: benchmarks/cache_quality.py measures both.

Invariant: a number beyond 448 is kept as 448, never as NaN.
"""

import torch
from torch import Tensor

LARGEST = 448.0


def as_kept(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in the dtype of a cache."""
    if dtype == torch.float8_e4m3fn:
        x = x.clamp(-LARGEST, LARGEST)
    return x.to(dtype)
