"""Lesson 04: one layer of PLaMo 2.

Invariant: the residual stream is only ever added to; every norm stands in a branch.
Built in notebooks/04_reference_generation.ipynb.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def one_layer(
    hidden: Tensor,
    norm: Callable[[Tensor, str, float], Tensor],
    mixer: Callable[[Tensor], tuple[Tensor, Any]],
    gate_up: Tensor,
    down: Tensor,
) -> tuple[Tensor, Any]:
    """hidden [T, D], gate_up [2·I, D], down [D, I] → [T, D], and what the mixer remembers.

    Args:
        norm: `norm(x, place, offset)`, with a gain of its own in each of the four places.
        mixer: x [T, D] → the same shape, and its state.
    """
    mixed, state = mixer(norm(hidden, "pre_mixer", 1))
    hidden = hidden + norm(mixed, "post_mixer", 1 / 5)
    gate, up = (norm(hidden, "pre_mlp", 1) @ gate_up.T).chunk(2, dim=-1)
    out = (F.silu(gate) * up) @ down.T
    return hidden + norm(out, "post_mlp", 1 / 5**1.5), state
