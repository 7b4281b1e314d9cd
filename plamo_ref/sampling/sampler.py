"""From rows of logits to token ids, all rows at once.

Invariant: a row's token depends on that row, its parameters and its uniform number alone; greedy
rows cost an argmax; the host never waits for the device.
Built in notebooks/04b_logits_to_text.ipynb.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from plamo_ref.kernels.sample import twin as sample_kernel
from plamo_ref.sampling.params import SamplingParams

Draw = Callable[[Tensor, Tensor, bool], Tensor]  # as plamo_ref.kernels.sample.twin.sample


def sample(
    logits: Tensor,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
    draw: Draw = sample_kernel.sample,
    argmax: Callable[[Tensor], Tensor] = sample_kernel.argmax,
) -> Tensor:
    """One token id for each row.

    Args:
        logits: [B, V] in any floating dtype.
        params: B parameters, one for each row.
        uniforms: B numbers in [0, 1); ignored by greedy rows.
        draw: the operation `sample` of a table of kernels, which defines how truncation works.
        argmax: the table's `argmax`, for when all rows are greedy.

    Returns:
        [B] int64 on the logits' device, perhaps still being computed.
    """
    if all(p.greedy for p in params):
        return argmax(logits)
    knobs = knob_table(params, uniforms, logits.shape[-1])
    truncated = any(p.top_k > 0 or p.top_p < 1 for p in params)
    return draw(logits, knobs.to(logits.device, non_blocking=True), truncated)


def knob_table(
    params: Sequence[SamplingParams], uniforms: Sequence[float], vocab_size: int
) -> Tensor:
    """The parameters as plamo_ref.kernels.sample.twin wants them: [B, 5] float64, on the host."""
    table = np.empty((len(params), 5))
    table[:, 0] = [0.0 if p.greedy else p.temperature for p in params]
    table[:, 1] = [p.top_k if p.top_k > 0 else vocab_size for p in params]
    table[:, 2] = [p.top_p for p in params]
    table[:, 3] = [p.min_p for p in params]
    table[:, 4] = uniforms
    return torch.from_numpy(table)
