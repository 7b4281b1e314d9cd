"""What stands between a model's logits and the choice: penalties, biases, masks.

Invariant: rows that ask for nothing come back as they are, and cost nothing.
Order: repetition, frequency and presence penalties, bias, then what is forbidden.
Built in notebooks/16_sampling_and_guided_decoding.ipynb.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plamo_ref.sampling.guided import Guide
from plamo_ref.sampling.params import SamplingParams


@dataclass(frozen=True)
class RowContext:
    """What one row's adjustment depends on."""

    params: SamplingParams
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]
    stop_ids: Collection[int]  # the checkpoint's and the user's
    guide: Guide | None = None


def adjust(logits: Tensor, contexts: Sequence[RowContext]) -> Tensor:
    """logits [B, V] and a context for each row → logits to sample from.

    The given tensor is not changed; the result has at least float32 if any row is adjusted.
    """
    rows = [i for i, context in enumerate(contexts) if context.params.changes_logits]
    if not rows:
        return logits
    asking = [contexts[i] for i in rows]
    where = torch.tensor(rows, device=logits.device)
    wide = torch.promote_types(logits.dtype, torch.float32)
    part = logits[where].to(wide)  # a copy: from here on in place
    _penalise(part, asking)
    for row, context in enumerate(asking):
        _bias_and_forbid(part[row], context)
    result = logits.to(wide, copy=True)
    result[where] = part
    return result


def _penalise(logits: Tensor, contexts: Sequence[RowContext]) -> None:
    """Repetition, frequency and presence penalties, in place."""
    params = [c.params for c in contexts]
    if all(
        p.repetition_penalty == 1 and not p.frequency_penalty and not p.presence_penalty
        for p in params
    ):
        return
    table = [[p.repetition_penalty, p.frequency_penalty, p.presence_penalty] for p in params]
    columns = torch.tensor(table, dtype=logits.dtype, device=logits.device)
    repetition, frequency, presence = (c[:, None] for c in columns.unbind(-1))  # [B, 1] each
    in_output = _count([c.output_ids for c in contexts], logits)  # [B, V]
    seen = (in_output + _count([c.prompt_ids for c in contexts], logits)) > 0
    scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits.copy_(torch.where(seen, scaled, logits))
    logits.sub_(frequency * in_output + presence * (in_output > 0))


def _count(rows: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """[B, V] how often each token is in each row."""
    counts = torch.zeros_like(like)
    index = [i for i, ids in enumerate(rows) for _ in ids]
    tokens = [token for ids in rows for token in ids]
    where = torch.tensor([index, tokens], dtype=torch.long, device=like.device)
    counts.index_put_((where[0], where[1]), like.new_ones(()), accumulate=True)
    return counts


def _bias_and_forbid(row: Tensor, context: RowContext) -> None:
    """One row [V], in place."""
    params = context.params
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=row.device)
        row[ids] += row.new_tensor(list(params.logit_bias.values()))
    if context.guide is not None:
        allowed = torch.from_numpy(context.guide.mask()).to(row.device)
        row.masked_fill_(~allowed, -torch.inf)
    if context.stop_ids and len(context.output_ids) < params.min_tokens:
        row[torch.tensor(sorted(context.stop_ids), device=row.device)] = -torch.inf
