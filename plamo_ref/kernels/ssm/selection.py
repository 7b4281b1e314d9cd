"""B, C and dt of a Mamba layer, from one projection: what makes the state space selective.

    b, c, d = split(bcdt)    B = rms_norm(b, g_B)  C = rms_norm(c, g_C)  dt = rms_norm(d, g_d) Wᵀ

Glossary: T tokens, N state size, R dt rank, H heads; bcdt [T, 2N + R] in the order B, C, dt;
W [H, R] is dt_proj. Δ = softplus(dt + bias) is taken where it is used, in twin.py.

Invariant: each norm is rounded to the dtype of the gains before it is used, as in ../norm/twin.py.
Built in notebooks/03_mamba_mixer.ipynb.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from plamo_ref.kernels.linear.twin import whole
from plamo_ref.kernels.norm.twin import rms_norm


@dataclass(frozen=True)
class SelectionParams:
    """The weights between bcdt_proj and the recurrence of one layer."""

    B_gain: Tensor  # [N]
    C_gain: Tensor  # [N]
    dt_gain: Tensor  # [R]
    dt_weight: Tensor  # [H, R]
    eps: float


def selection(bcdt: Tensor, params: SelectionParams) -> tuple[Tensor, Tensor, Tensor]:
    """bcdt [T, 2N + R], or parts of it [parts, T, 2N + R] → B, C [T, N] and dt [T, H]."""
    bcdt = whole(bcdt, params.dt_weight.dtype)
    state, rank = params.B_gain.shape[0], params.dt_gain.shape[0]
    B, C, dt = bcdt.split((state, state, rank), dim=-1)
    return (
        rms_norm(B, params.B_gain, params.eps),
        rms_norm(C, params.C_gain, params.eps),
        F.linear(rms_norm(dt, params.dt_gain, params.eps), params.dt_weight),
    )
