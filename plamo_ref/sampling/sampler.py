"""From rows of logits to token ids, all rows at once.

Invariant: a row's token depends on that row, its parameters and its uniform number alone; greedy
rows cost an argmax. Built in notebooks/04_reference_generation.ipynb.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from plamo_ref.sampling.params import SamplingParams


def sample(logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> Tensor:
    """One token id for each row.

    Args:
        logits: [B, V] in any floating dtype.
        params: B parameters, one for each row.
        uniforms: B numbers in [0, 1); ignored by greedy rows.

    Returns:
        [B] int64 on the logits' device.
    """
    chosen = logits.argmax(-1)
    random = [i for i, p in enumerate(params) if not p.greedy]
    if random:
        rows = torch.tensor(random, device=logits.device)
        drawn = _sample_random(
            logits[rows], [params[i] for i in random], [uniforms[i] for i in random]
        )
        chosen[rows] = drawn
    return chosen


def _sample_random(
    logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> Tensor:
    """Temperature, min-p, top-k, top-p, then the inverse of the cumulated probabilities."""
    columns = [
        [p.temperature, p.min_p, p.top_k if p.top_k > 0 else logits.shape[-1], p.top_p, u]
        for p, u in zip(params, uniforms, strict=True)
    ]
    table = torch.tensor(columns, dtype=torch.float64, device=logits.device)
    temperature, min_p, top_k, top_p, u = (c[:, None] for c in table.unbind(-1))  # [B, 1] each

    probs = torch.softmax(logits.to(torch.float64) / temperature, dim=-1)
    # Stable: equal probabilities keep the order of their ids, on every device.
    probs, ids = probs.sort(dim=-1, descending=True, stable=True)  # [B, V]
    rank = torch.arange(probs.shape[-1], device=probs.device)
    kept = (probs >= min_p * probs[:, :1]) & (rank < top_k)
    probs = probs * kept
    probs = probs / probs.sum(-1, keepdim=True)
    before = probs.cumsum(-1) - probs
    probs = probs * (before < top_p)

    cumulated = probs.cumsum(-1)
    reached = cumulated > u * cumulated[:, -1:]
    return ids.gather(-1, reached.int().argmax(-1, keepdim=True))[:, 0]
