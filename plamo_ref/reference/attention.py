"""Sliding-window (or full) attention of PLaMo 2 with grouped heads and QK-norm.

Invariant: the state holds every key that a later token may still see, and no other.
Built in notebooks/02_sliding_window_attention.ipynb.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plamo_ref.config import QK_NORM_EPS, Plamo2Config
from plamo_ref.reference.functions import rms_norm, rope, visible


@dataclass
class AttentionState:
    """The keys (normed, before RoPE) and values that later tokens may still see."""

    keys: Tensor  # [..., n, KV heads, P]
    values: Tensor  # [..., n, KV heads, P]


class Attention(nn.Module):
    """Grouped-query attention: QK-norm, then RoPE, then a causal window (or none)."""

    def __init__(self, config: Plamo2Config, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = config.hidden_size_per_head
        self.window, self.theta = config.window(layer), config.theta(layer)
        self.q_size, self.kv_size = config.q_size, config.kv_size
        self.qkv_proj = nn.Linear(config.hidden_size, self.q_size + 2 * self.kv_size, bias=False)
        self.o_proj = nn.Linear(self.q_size, config.hidden_size, bias=False)
        self.q_weight = nn.Parameter(torch.ones(self.heads, self.head_size))
        self.k_weight = nn.Parameter(torch.ones(self.kv_heads, self.head_size))

    def forward(
        self, x: Tensor, state: AttentionState | None, start: int
    ) -> tuple[Tensor, AttentionState]:
        """x [..., T, D] at positions start, start + 1, … Returns [..., T, D] and the state."""
        parts = self.qkv_proj(x).split((self.q_size, self.kv_size, self.kv_size), dim=-1)
        q, k, v = (p.unflatten(-1, (-1, self.head_size)) for p in parts)  # [..., T, H, P]
        q = rms_norm(q, self.q_weight, QK_NORM_EPS)
        k = rms_norm(k, self.k_weight, QK_NORM_EPS)
        if state is not None:
            k = torch.cat((state.keys, k), dim=-3)
            v = torch.cat((state.values, v), dim=-3)

        end = start + x.shape[-2]
        query_pos = torch.arange(start, end, device=x.device)
        key_pos = torch.arange(end - k.shape[-3], end, device=x.device)
        q = rope(q, query_pos, self.theta).transpose(-3, -2)  # [..., H, T, P]
        rotated = rope(k, key_pos, self.theta).transpose(-3, -2)  # [..., KV heads, Tk, P]
        group = self.heads // self.kv_heads  # query head j reads kv head j // group
        rotated = rotated.repeat_interleave(group, dim=-3)
        values = v.transpose(-3, -2).repeat_interleave(group, dim=-3)

        scores = q @ rotated.transpose(-1, -2) / math.sqrt(self.head_size)  # [..., H, T, Tk]
        scores = scores.to(torch.promote_types(x.dtype, torch.float32))
        scores = scores.masked_fill(~visible(query_pos, key_pos, self.window), -torch.inf)
        mixed = scores.softmax(-1).to(x.dtype) @ values  # [..., H, T, P]
        out = self.o_proj(mixed.transpose(-3, -2).flatten(-2))
        kept = k.shape[-3] if self.window is None else min(k.shape[-3], self.window)
        first = k.shape[-3] - kept
        return out, AttentionState(k[..., first:, :, :], v[..., first:, :, :])
