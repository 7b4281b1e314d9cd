"""Tokens from logits: truncation by rank, then inversion in the order of token ids.

    m = max x;  w_i = ⌊exp((x_i - m) / T) · 2⁴⁰ + ½⌋            x [V], logits of one row
    token = the first i with  w_0 + … + w_i > u · Σ w             over the tokens that are kept

    T      temperature; 0: greedy, the smallest i with x_i = m
    u      a number in [0, 1), the row's randomness
    min_p  keeps w_i ≥ min_p · 2⁴⁰, relative to the likeliest token
    top_k  keeps the k first tokens in the order of (-x_i, i)
    top_p  keeps the fewest first tokens, in the same order, whose w sum up to p of what min_p and
           top_k have left

Among equal logits the smaller id counts as likelier, so who is kept depends on the row alone. Of a
row in which all is -inf, the first id.

Invariant: weights are integers, so sums are exact and no order of adding them can change a token:
a row's token is the same in any batch and for any split of the row. The order of inversion is that
of the ids: two nearly equal logits that swap ranks move no other token's share of [0, 1). A token
2⁻⁴¹ times as likely as the likeliest has weight 0 and is never drawn.
Built in notebooks/16_sampling_and_guided_decoding.ipynb.
"""

import torch
from torch import Tensor

# Columns of the table `knobs`: top_k is V where all are kept, 1.0 and 0.0 keep all in the others.
KNOBS = ("temperature", "top_k", "top_p", "min_p", "uniform")
UNIT = float(1 << 40)  # the weight of the likeliest; 2²² of them fit an int64


def sample(logits: Tensor, knobs: Tensor, truncated: bool = True) -> Tensor:
    """As `Kernels.sample`: logits [B, V], knobs [B, 5], the columns of KNOBS → [B] int64."""
    weights = kept_weights(logits, knobs, truncated)  # [B, V]
    total = weights.sum(-1, keepdim=True)  # [B, 1], at least 1
    target = torch.minimum((knobs[:, -1:] * total).long(), total - 1)
    drawn = (weights.cumsum(-1) <= target).sum(-1)  # [B]: so many ids lie before the token
    top, first = logits.max(-1)
    return torch.where((knobs[:, 0] == 0) | top.isneginf(), first, drawn)


def kept_weights(logits: Tensor, knobs: Tensor, truncated: bool = True) -> Tensor:
    """w of the formula, 0 for the tokens that are not kept: [B, V] int64. Arguments as above."""
    x = logits.to(torch.promote_types(logits.dtype, torch.float32))  # [B, V]
    temperature, top_k, top_p, min_p, _ = (column[:, None] for column in knobs.unbind(-1))
    weights = token_weights(x, temperature)
    weights = weights * (weights >= min_p * UNIT)
    return _truncate(x, weights, top_k, top_p) if truncated else weights


def argmax(logits: Tensor) -> Tensor:
    """The token of greedy rows: logits [B, V] → [B] int64, the smallest id among equals."""
    return logits.argmax(-1)


def token_weights(x: Tensor, temperature: Tensor) -> Tensor:
    """w of the formula: x [B, V], temperature [B, 1] → [B, V] int64."""
    top = x.amax(-1, keepdim=True)
    below = torch.where(x == top, 0.0, x - top)  # also where the largest is infinite
    warm = torch.where(temperature == 0, 1.0, temperature).to(x.dtype)
    return ((below / warm).exp() * UNIT + 0.5).long()


def _truncate(x: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The weights with 0 for the tokens that top-k and top-p leave out: [B, V]."""
    order = x.sort(dim=-1, descending=True, stable=True).indices  # stable: equals by their ids
    ranked = weights.gather(-1, order)
    ranked = ranked * (torch.arange(x.shape[-1], device=x.device) < top_k)
    cumulated = ranked.cumsum(-1)
    total = cumulated[:, -1:]
    goal = torch.where(top_p < 1, (top_p * total).ceil().long().clamp_min(1), total)
    ranked = ranked * (cumulated - ranked < goal)  # kept while those before do not reach the goal
    return torch.zeros_like(weights).scatter(-1, order, ranked)
