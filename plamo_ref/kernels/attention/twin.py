"""Attention over keys and values that live in blocks.

    o = softmax(q kᵀ / sqrt(P) + mask) v        query t sees key s when  t - W <= s <= t

Glossary: T tokens of the step, R requests, H query heads, G KV heads (query head j reads KV head
j // (H/G)), P head size, M width of the block table, W window (None: no limit).
A block table row lists the physical blocks of one request; its first entry holds the logical
block `first_block`, so that a windowed request needs no entries for what it has dropped:

    key position of entry j, row r  =  (first_block + j) · block_size + r

Invariant: an entry beyond a request's last block is never read into the result, whatever it holds.
Built in notebooks/05_paged_attention.ipynb.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor


def gather_paged(cache: Tensor, block_table: Tensor) -> Tensor:
    """cache [blocks, block_size, G, P], block_table [R, M] → [R, M·block_size, G, P]."""
    return cache[block_table].flatten(1, 2)


def paged_decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    first_block: Tensor,
    seq_lens: Tensor,
    window: int | None,
) -> Tensor:
    """As `Kernels.paged_decode`: q [R, H, P] → [R, H, P]."""
    block_size, kv_heads = keys.shape[1], keys.shape[2]
    k = gather_paged(keys, block_table).to(q.dtype)  # [R, S, G, P]
    v = gather_paged(values, block_table).to(q.dtype)
    offset = torch.arange(k.shape[1], device=q.device)
    position = first_block[:, None] * block_size + offset  # [R, S]
    last = seq_lens[:, None] - 1
    seen = position <= last
    if window is not None:
        seen &= position >= last - window
    grouped = q.unflatten(1, (kv_heads, -1))  # [R, G, H/G, P]
    mixed = _attend(grouped, k.transpose(1, 2), v.transpose(1, 2), seen[:, None, None, :])
    return mixed.flatten(1, 2)


def paged_prefill(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    first_block: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    window: int | None,
) -> Tensor:
    """As `Kernels.paged_prefill`: q [T, H, P] → [T, H, P]."""
    block_size, kv_heads = keys.shape[1], keys.shape[2]
    out = torch.empty_like(q)
    starts, lengths, firsts = (t.tolist() for t in (query_start_loc, seq_lens, first_block))
    for row, (start, end) in enumerate(pairwise(starts)):
        length, first_key = lengths[row], firsts[row] * block_size
        used = math.ceil((length - first_key) / block_size)
        table = block_table[row : row + 1, :used]
        found = (gather_paged(each, table)[0, : length - first_key] for each in (keys, values))
        k, v = (each.to(q.dtype).transpose(0, 1) for each in found)  # [G, S, P]
        query = torch.arange(length - (end - start), length, device=q.device)[:, None]
        key = torch.arange(first_key, length, device=q.device)[None, :]
        seen = key <= query
        if window is not None:
            seen = seen & (key >= query - window)
        grouped = q[start:end].unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)  # [G, H/G, Q, P]
        mixed = _attend(grouped, k[:, None], v[:, None], seen)
        out[start:end] = mixed.permute(2, 0, 1, 3).flatten(1, 2)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Masked softmax attention; `seen` broadcasts against the scores [..., Q, S]."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).to(q.dtype)
    # Rows of unused entries may hold anything, NaN too, and 0 · NaN is NaN.
    return weights @ v.masked_fill(~seen.any(-2).unsqueeze(-1), 0)
