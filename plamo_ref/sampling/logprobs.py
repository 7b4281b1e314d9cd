"""How likely tokens were, as the model said, before penalties and temperature.

Invariant: probabilities are of the unchanged logits, in at least float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenLogprobs:
    """One token, and the most likely ones in its place."""

    token_id: int
    logprob: float
    rank: int  # 1: the most likely
    top: tuple[tuple[int, float], ...]  # (token id, log probability), most likely first


def token_logprobs(logits: "Tensor", tokens: Sequence[int], count: int) -> list[TokenLogprobs]:
    """For rows of logits [n, V] and the token of each, its log probability and `count` best."""
    import torch

    wide = torch.promote_types(logits.dtype, torch.float32)
    values = torch.log_softmax(logits.to(wide), dim=-1)  # [n, V]
    chosen = values.gather(1, torch.tensor(tokens, device=logits.device)[:, None])  # [n, 1]
    ranks = (values > chosen).sum(-1) + 1
    best = values.topk(min(count, values.shape[-1]), dim=-1)
    rows = zip(
        tokens,
        chosen[:, 0].tolist(),
        ranks.tolist(),
        best.indices.tolist(),
        best.values.tolist(),
        strict=True,
    )
    return [
        TokenLogprobs(token, logprob, rank, tuple(zip(ids, logprobs, strict=True)))
        for token, logprob, rank, ids, logprobs in rows
    ]
