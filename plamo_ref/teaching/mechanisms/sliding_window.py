"""Lesson 02: attention with a window.

Invariant: a query sees the key at its own position and those at the W positions before it.
Built in notebooks/02_sliding_window_attention.ipynb.
"""

import math

import torch
from torch import Tensor


def window_mask(query_pos: Tensor, key_pos: Tensor, window: int) -> Tensor:
    """Positions [Tq] and [Tk] → [Tq, Tk]: True where the query may see the key."""
    distance = query_pos[:, None] - key_pos[None, :]
    return (distance >= 0) & (distance <= window)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [Tq, H, P], k and v [Tk, KV heads, P], mask [Tq, Tk] → [Tq, H, P]."""
    group = q.shape[1] // k.shape[1]
    k, v = (a.repeat_interleave(group, dim=1) for a in (k, v))  # [Tk, H, P]
    scores = torch.einsum("qhp,khp->hqk", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khp->qhp", weights, v)
