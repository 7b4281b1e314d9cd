"""The recurrence of Mamba: one step for decoding, chunks of matrix products for prefill.

    Δ_t = softplus(dt_t + bias)
    S_t = exp(Δ_t A) S_{t-1} + Δ_t u_t ⊗ B_t        y_t = (S_t C_t + D u_t) · silu(z_t)

Glossary: T tokens, R requests, H heads, P head size, N state size; u, z [T, H, P]; dt [T, H];
A, D, bias [H], A negative; B, C [T, N] shared by all heads; a slot is one state [H, P, N].

Invariant: the arithmetic is in at least float32 whatever dtype the slots have; only the given
slots are written; a request without a past starts from a zero state whatever its slot holds.
Source: Dao and Gu, "Transformers are SSMs" (2024). Built in notebooks/03_mamba_mixer.ipynb.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ScanParams:
    """The per-head parameters of one layer, each [H]."""

    A: Tensor
    D: Tensor
    dt_bias: Tensor


@dataclass(frozen=True)
class ScanInputs:
    """What the projections of one layer made of the tokens."""

    u: Tensor  # [T, H, P]
    z: Tensor  # [T, H, P]
    dt: Tensor  # [T, H]
    B: Tensor  # [T, N]
    C: Tensor  # [T, N]

    def rows(self, part: slice) -> "ScanInputs":
        return ScanInputs(self.u[part], self.z[part], self.dt[part], self.B[part], self.C[part])


def state_update(inputs: ScanInputs, params: ScanParams, cache: Tensor, slots: Tensor) -> Tensor:
    """As `Kernels.state_update`: y [R, H, P]."""
    u, dt, B, C, A, D = widen_inputs(inputs, params)
    state = cache[slots].to(u.dtype)  # [R, H, P, N], a copy: from here on in place
    state.mul_(torch.exp(dt * A)[..., None, None])
    state.addcmul_((dt[..., None] * u)[..., None], B[:, None, None, :])
    cache[slots] = state.to(cache.dtype)
    y = (state.flatten(1, 2) @ C[..., None]).view_as(u)  # [R, H·P, N] · [R, N, 1]
    return gate(y, u, D, inputs.z)


def scan_prefill(
    inputs: ScanInputs,
    params: ScanParams,
    cache: Tensor,
    slots: Tensor,
    query_start_loc: Tensor,
    has_past: Tensor,
    photographs: Tensor | None = None,
    chunk: int = 64,
) -> Tensor:
    """As `Kernels.scan_prefill`: y [T, H, P].

    chunk: tokens whose outputs are one masked matrix product; no effect on the result.
    """
    u, dt, B, C, A, D = widen_inputs(inputs, params)
    y = torch.empty_like(u)
    starts = query_start_loc.tolist()
    past = cache[slots].to(u.dtype).masked_fill(has_past[:, None, None, None] == 0, 0)
    moments = [] if photographs is None else photographs.tolist()
    for row, (first, last) in enumerate(pairwise(starts)):
        state, start = past[row], first  # [H, P, N]
        kept = {first + count: slot for of, count, slot in moments if of == row}
        for end in sorted({*range(first, last, chunk), last, *kept}):
            if start < end:
                part = slice(start, end)
                y[part], state = _scan_chunk(u[part], dt[part], A, B[part], C[part], state)
                start = end
            if end in kept:
                cache[kept[end]] = state.to(cache.dtype)
        cache[slots[row]] = state.to(cache.dtype)
    return gate(y, u, D, inputs.z)


def _scan_chunk(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Q tokens at once. Returns y [Q, H, P] and the state after the last."""
    log_decay = torch.cumsum(dt * A, dim=0).T  # [H, Q]: from the start of the chunk
    du = (dt[..., None] * u).transpose(0, 1)  # [H, Q, P]
    between = log_decay[:, :, None] - log_decay[:, None, :]  # [H, Q, Q]
    past = torch.ones(between.shape[1:], dtype=torch.bool, device=u.device).tril()
    # Masked before exp: above the diagonal the exponent is positive and could overflow.
    weights = torch.exp(between.masked_fill(~past, -torch.inf)) * (C @ B.T)
    y = weights @ du + torch.exp(log_decay)[..., None] * (C @ state.transpose(-1, -2))
    left = torch.exp(log_decay[:, -1:] - log_decay)[..., None]  # of each token, at the end
    state = torch.exp(log_decay[:, -1])[:, None, None] * state + (left * du).mT @ B
    return y.transpose(0, 1), state


def widen_inputs(inputs: ScanInputs, params: ScanParams) -> tuple[Tensor, ...]:
    """u, Δ, B, C, A, D in at least float32."""
    wide = torch.promote_types(inputs.u.dtype, torch.float32)
    dt = F.softplus(inputs.dt.to(wide) + params.dt_bias.to(wide))
    return (
        inputs.u.to(wide),
        dt,
        inputs.B.to(wide),
        inputs.C.to(wide),
        params.A.to(wide),
        params.D.to(wide),
    )


def gate(y: Tensor, u: Tensor, D: Tensor, z: Tensor) -> Tensor:
    return (y + D[:, None] * u).to(z.dtype) * F.silu(z)
