"""The three small functions that attention and Mamba share: RMS norm, RoPE, the visibility mask.

Invariant: statistics are taken in at least float32, results come back in the input's dtype.
Built in notebooks/02_sliding_window_attention.ipynb.
"""

import torch
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · gain over the last dimension; statistics at least float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * gain.to(x.dtype)


def rope(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotate pairs (i, i + P/2) of x [..., T, H, P] by positions [T] · theta^(-2i/P)."""
    half = x.shape[-1] // 2
    exponent = torch.arange(half, device=x.device, dtype=torch.float64) / half
    angle = positions.to(torch.float64)[:, None] * theta**-exponent  # [T, P/2]
    cos = angle.cos().to(x.dtype)[:, None, :]  # [T, 1, P/2]
    sin = angle.sin().to(x.dtype)[:, None, :]
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """[Tq, Tk] mask: a query sees keys at its own position and up to W before: W + 1 keys."""
    distance = queries[:, None] - keys[None, :]
    causal = distance >= 0
    return causal if window is None else causal & (distance <= window)
