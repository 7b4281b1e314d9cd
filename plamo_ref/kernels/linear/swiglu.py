"""SwiGLU: silu(gate) · up.

y = g / (1 + exp(-g)) · u          [g | u] = x [T, 2F], y [T, F]

Invariant: the gate is the first half of x, as in the checkpoints' gate_up_proj.
"""

import torch.nn.functional as F
from torch import Tensor


def swiglu(x: Tensor) -> Tensor:
    """x [T, 2F], gate first → [T, F]."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up
