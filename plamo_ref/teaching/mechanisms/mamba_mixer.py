"""Lesson 03: the recurrence, one token after the other.

Invariant: a token fades what was there, writes itself, and reads with its own write in it.
Built in notebooks/03_mamba_mixer.ipynb.
"""

import torch
from torch import Tensor


def loop(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """x [T, H, P], Δ [T, H], A [H], B and C [T, N], S [H, P, N] → y [T, H, P] and the last S."""
    y = []
    for t in range(len(x)):
        keep = (delta[t] * A).exp()[:, None, None]  # [H, 1, 1]
        S = keep * S + (delta[t, :, None] * x[t])[:, :, None] * B[t]
        y.append(S @ C[t])
    return torch.stack(y), S
