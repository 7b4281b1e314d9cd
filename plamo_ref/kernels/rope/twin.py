"""QK-norm, RoPE and the write of keys and values into their blocks: one pass over qkv.

    q ← rope(rms_norm(q, g_q)),  k ← rope(rms_norm(k, g_k)),  v unchanged
    block b = slot // block_size, row r = slot % block_size:  K[b, r] ← k,  V[b, r] ← v

Glossary: T tokens of the step, H query heads, G KV heads, P head size; slot_mapping [T] is where
each token's keys and values live, in rows of the group's memory. cos, sin [T, P/2].

Invariant: rows that are not in slot_mapping are not touched.
Built in notebooks/05_paged_attention.ipynb.
"""

import torch
from torch import Tensor

from plamo_ref.config import QK_NORM_EPS
from plamo_ref.kernels.attention.narrow import as_kept
from plamo_ref.kernels.linear.twin import whole
from plamo_ref.kernels.norm.twin import rms_norm


def rope_tables(positions: Tensor, head_size: int, theta: float, dtype: torch.dtype) -> Tensor:
    """cos and sin of positions [T] · theta^(-2i/P), stacked: [2, T, 1, P/2].

    Angles are float64: at position 10 million a float32 angle is off by half a radian.
    """
    half = head_size // 2
    exponent = torch.arange(half, device=positions.device, dtype=torch.float64) / half
    angle = positions.to(torch.float64)[:, None] * theta**-exponent  # [T, P/2]
    return torch.stack((angle.cos(), angle.sin())).to(dtype)[:, :, None, :]


def rotate(x: Tensor, tables: Tensor) -> Tensor:
    """Rotate the pairs (i, i + P/2) of x [T, H, P]."""
    cos, sin = tables
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def qk_norm_rope(
    qkv: Tensor, q_gain: Tensor, k_gain: Tensor, tables: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments as below → normed and rotated q [T, H, P] and k [T, G, P], and v [T, G, P]."""
    heads, kv_heads, size = q_gain.shape[0], k_gain.shape[0], q_gain.shape[1]
    qkv = whole(qkv, q_gain.dtype)
    q, k, v = qkv.view(-1, heads + 2 * kv_heads, size).split((heads, kv_heads, kv_heads), dim=1)
    q = rotate(rms_norm(q, q_gain, QK_NORM_EPS), tables)
    k = rotate(rms_norm(k, k_gain, QK_NORM_EPS), tables)
    return q, k, v


def qk_norm_rope_write(
    qkv: Tensor,
    q_gain: Tensor,
    k_gain: Tensor,
    tables: Tensor,
    keys: Tensor,
    values: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    """As `Kernels.qk_norm_rope_write`: returns the queries [T, H, P]."""
    q, k, v = qk_norm_rope(qkv, q_gain, k_gain, tables)
    keys.flatten(0, 1)[slot_mapping] = as_kept(k, keys.dtype)
    values.flatten(0, 1)[slot_mapping] = as_kept(v, values.dtype)
    return q
