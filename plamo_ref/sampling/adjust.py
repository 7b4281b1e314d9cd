"""What stands between a model's logits and the choice: penalties, biases, masks.

Invariant: rows that ask for nothing come back as they are; a row's result depends on that row and
its context alone. Order: repetition, frequency and presence penalties, bias, what `min_tokens`
forbids, the grammar, which has the last word.
Built in notebooks/16_sampling_and_guided_decoding.ipynb.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
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
    num_outputs: int | None = None  # tokens in the output; None: those of `output_ids`

    @property
    def early(self) -> bool:
        """Whether a stop token would come too early."""
        count = len(self.output_ids) if self.num_outputs is None else self.num_outputs
        return count < self.params.min_tokens


def adjust(logits: Tensor, contexts: Sequence[RowContext]) -> Tensor:
    """logits [B, V] and a context for each row → logits to sample from.

    The given tensor is not changed; the result has at least float32 if any row is adjusted.
    """
    rows = [i for i, context in enumerate(contexts) if context.params.changes_logits]
    if not rows:
        return logits
    asking = [contexts[i] for i in rows]
    # First of all, before anything waits for the device, which still computes the logits.
    guided, allowed = _masks(asking)
    where = _moved(rows, logits.device)
    wide = torch.promote_types(logits.dtype, torch.float32)
    part = logits[where].to(wide)  # a copy: from here on in place
    _penalise(part, asking)
    _bias(part, asking)
    _forbid_early_stops(part, asking)
    if guided:
        _enforce(part, guided, torch.from_numpy(allowed).to(logits.device, non_blocking=True))
    result = logits.to(wide, copy=True)
    result[where] = part
    return result


def _masks(contexts: Sequence[RowContext]) -> tuple[list[int], np.ndarray]:
    """The rows with a grammar, and what it allows in each: [G, V] bool."""
    guides = [(i, c.guide, c.stop_ids) for i, c in enumerate(contexts)]
    masks = {i: guide.mask(stop_ids) for i, guide, stop_ids in guides if guide is not None}
    return list(masks), np.stack(list(masks.values())) if masks else np.empty((0, 0), dtype=bool)


def _penalise(logits: Tensor, contexts: Sequence[RowContext]) -> None:
    """Repetition, frequency and presence penalties, in place."""
    params = [c.params for c in contexts]
    if all(
        p.repetition_penalty == 1 and not p.frequency_penalty and not p.presence_penalty
        for p in params
    ):
        return
    table = [[p.repetition_penalty, p.frequency_penalty, p.presence_penalty] for p in params]
    columns = _moved(table, logits.device, logits.dtype)
    repetition, frequency, presence = (c[:, None] for c in columns.unbind(-1))  # [B, 1] each
    in_output = _count([c.output_ids for c in contexts], logits)  # [B, V]
    seen = (in_output + _count([c.prompt_ids for c in contexts], logits)) > 0
    scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits.copy_(torch.where(seen, scaled, logits))
    logits.sub_(frequency * in_output + presence * (in_output > 0))


def _count(rows: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """[B, V] how often each token is in each row."""
    counts = torch.zeros_like(like)
    where = _places(rows, like.device)
    counts.index_put_(where, like.new_ones(()), accumulate=True)
    return counts


def _moved(
    values: Sequence[object], device: torch.device, dtype: torch.dtype = torch.long
) -> Tensor:
    """A tensor on the device; the host does not wait until it is there."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def _places(rows: Sequence[Collection[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every token id in ragged rows."""
    pairs = [(row, token) for row, ids in enumerate(rows) for token in ids]
    both = _moved(pairs, device).view(-1, 2)
    return both[:, 0], both[:, 1]


def _bias(logits: Tensor, contexts: Sequence[RowContext]) -> None:
    """Add the biases, in place."""
    biases = [c.params.logit_bias for c in contexts]
    values = [value for bias in biases for value in bias.values()]
    if values:
        where = _places([list(bias) for bias in biases], logits.device)
        moved = _moved(values, logits.device, logits.dtype)
        logits.index_put_(where, moved, accumulate=True)


def _forbid_early_stops(logits: Tensor, contexts: Sequence[RowContext]) -> None:
    """No stop token before `min_tokens`, in place."""
    early = [c.stop_ids if c.early else () for c in contexts]
    if any(early):
        where = _places(early, logits.device)
        logits.index_put_(where, logits.new_full((), -torch.inf))


def _enforce(logits: Tensor, rows: Sequence[int], allowed: Tensor) -> None:
    """Forbid what the grammars of some rows do not allow ([G, V]), in place.

    Where bias and `min_tokens` have left none of the allowed tokens, the grammar decides alone.
    """
    where = _moved(rows, logits.device)
    masked = logits[where].masked_fill(~allowed, -torch.inf)
    nothing_left = masked.isneginf().all(-1, keepdim=True)
    logits[where] = torch.where(nothing_left & allowed, 0.0, masked)
