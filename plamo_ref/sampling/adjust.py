"""What stands between a model's logits and the choice: penalties, biases, masks.

Invariant: rows that ask for nothing come back as they are; a row's result depends on that row and
its context alone. Order: repetition, frequency and presence penalties, bias, what `min_tokens`
forbids, the grammar, which has the last word; before them all, the user's own
processors. `adjust` reads every token of every context; what does the
same at a fixed cost is `plamo_ref.engine.fast.adjust_tables`.
Built in notebooks/16_sampling_and_guided_decoding.ipynb.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from plamo_ref.grammar.guided import Guide
from plamo_ref.sampling.params import SamplingParams
from plamo_ref.sampling.processors import process


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
    def total(self) -> int:
        """Tokens in the output, those included that `output_ids` does not have yet."""
        return len(self.output_ids) if self.num_outputs is None else self.num_outputs

    @property
    def early(self) -> bool:
        """Whether a stop token would come too early."""
        return self.total < self.params.min_tokens


class Tables(Protocol):
    """What gives the same as `adjust` at less cost, from what it keeps of each request."""

    @property
    def num_seats(self) -> int:
        """Requests of which it keeps something."""
        ...

    def adjust(
        self, logits: Tensor, keys: Sequence[Any], contexts: Sequence[RowContext], unread: Any
    ) -> Tensor:
        """`keys` name the requests; `unread`, if anything, has tokens that the host has not."""
        ...

    def release(self, key: Any) -> None:
        """A request has ended."""
        ...

    def clear(self) -> None:
        """Keep nothing any more."""
        ...


def adjust(logits: Tensor, contexts: Sequence[RowContext]) -> Tensor:
    """logits [B, V] and a context for each row → logits to sample from.

    The given tensor is not changed; the result has at least float32 if any row is adjusted.
    """
    rows = [i for i, context in enumerate(contexts) if context.params.changes_logits]
    if not rows:
        return logits
    asking = [contexts[i] for i in rows]
    # First of all, before anything waits for the device, which still computes the logits.
    guided, allowed = masks(asking)
    where = moved(rows, logits.device)
    wide = torch.promote_types(logits.dtype, torch.float32)
    part = logits[where].to(wide)  # a copy: from here on in place
    process_rows(part, asking)
    if any(context.params.penalises for context in asking):
        part = _penalise(part, asking)
    _bias(part, asking)
    _forbid_early_stops(part, asking)
    if guided:
        enforce(part, moved(guided, logits.device), moved_masks(allowed, logits.device))
    result = logits.to(wide, copy=True)
    result[where] = part
    return result


# --- the rules ------------------------------------------------------------------------------------


def process_rows(logits: Tensor, contexts: Sequence[RowContext]) -> None:
    """What the user's own processors make of each row, in place."""
    for row, context in enumerate(contexts):
        if context.params.logits_processors:
            process(logits[row], context.params.logits_processors, context.output_ids)


def penalised(logits: Tensor, knobs: Tensor, in_output: Tensor, seen: Tensor) -> Tensor:
    """Logits after repetition, frequency and presence penalties.

    Args:
        logits: of any shape.
        knobs: [..., 3], the penalties in this order, in the logits' dtype; [...] goes with theirs.
        in_output: how often each token is in the output.
        seen: bool, whether it is in prompt or output.
    """
    repetition, frequency, presence = knobs.unbind(-1)
    scaled = torch.where(logits > 0, logits / repetition, logits * repetition)
    subtracted = frequency * in_output + presence * (in_output > 0)
    return torch.where(seen, scaled, logits).sub_(subtracted)


def enforce(logits: Tensor, rows: Tensor, allowed: Tensor) -> None:
    """Forbid what the grammars of some rows [G] do not allow ([G, V] bool), in place.

    Where bias and `min_tokens` have left none of the allowed tokens, the grammar decides alone.
    """
    masked = logits[rows].masked_fill(~allowed, -torch.inf)
    nothing_left = masked.isneginf().all(-1, keepdim=True)
    logits[rows] = torch.where(nothing_left & allowed, 0.0, masked)


def masks(contexts: Sequence[RowContext]) -> tuple[list[int], np.ndarray]:
    """The rows with a grammar, and what it allows in each: [G, V] bool."""
    guides = [(i, c.guide, c.stop_ids) for i, c in enumerate(contexts)]
    made = {i: guide.mask(stop_ids) for i, guide, stop_ids in guides if guide is not None}
    return list(made), np.stack(list(made.values())) if made else np.empty((0, 0), dtype=bool)


def knobs_of(params: SamplingParams) -> list[float]:
    """What `penalise` wants to know of a row."""
    return [params.repetition_penalty, params.frequency_penalty, params.presence_penalty]


# --- on the way to the device ---------------------------------------------------------------------


def moved(
    values: Sequence[object] | np.ndarray, device: torch.device, dtype: torch.dtype = torch.long
) -> Tensor:
    """A tensor on the device; the host does not wait until it is there."""
    return torch.as_tensor(values, dtype=dtype).to(device, non_blocking=True)


def moved_masks(allowed: np.ndarray, device: torch.device) -> Tensor:
    """Masks [G, V] bool on the device. To another device than the CPU they go as bits."""
    if device.type == "cpu":
        return torch.from_numpy(allowed)
    packed = np.packbits(allowed, axis=1, bitorder="little")
    return unpacked(moved(packed, device, torch.uint8), allowed.shape[1])


def unpacked(packed: Tensor, width: int) -> Tensor:
    """Bits [G, ⌈V / 8⌉] uint8, the lowest first → [G, V] bool."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, :, None] >> places) & 1  # [G, ⌈V / 8⌉, 8]
    return bits.flatten(1)[:, :width].bool()


# --- of a context, token by token -----------------------------------------------------------------


def _penalise(logits: Tensor, contexts: Sequence[RowContext]) -> Tensor:
    knobs = moved([knobs_of(c.params) for c in contexts], logits.device, logits.dtype)
    in_output = _count([c.output_ids for c in contexts], logits)  # [B, V]
    seen = (in_output + _count([c.prompt_ids for c in contexts], logits)) > 0
    return penalised(logits, knobs[:, None], in_output, seen)


def _count(rows: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    """[B, V] how often each token is in each row."""
    counts = torch.zeros_like(like)
    counts.index_put_(_places(rows, like.device), like.new_ones(()), accumulate=True)
    return counts


def _places(rows: Sequence[Collection[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column of every token id in ragged rows."""
    numbers = np.repeat(np.arange(len(rows)), [len(ids) for ids in rows])
    tokens = np.concatenate([np.fromiter(ids, dtype=np.int64) for ids in rows])
    return moved(numbers, device), moved(tokens, device)


def _bias(logits: Tensor, contexts: Sequence[RowContext]) -> None:
    """Add the biases, in place."""
    biases = [c.params.logit_bias for c in contexts]
    if any(biases):
        values = np.concatenate([np.fromiter(b.values(), dtype=np.float64) for b in biases])
        added = moved(values, logits.device, logits.dtype)
        logits.index_put_(_places(biases, logits.device), added, accumulate=True)


def _forbid_early_stops(logits: Tensor, contexts: Sequence[RowContext]) -> None:
    """No stop token before `min_tokens`, in place."""
    early = [c.stop_ids if c.early else () for c in contexts]
    if any(early):
        logits.index_put_(_places(early, logits.device), logits.new_full((), -torch.inf))
