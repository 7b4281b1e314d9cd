"""Mamba's recurrence, twice: step by step, and in chunks of matrix products (SSD).

Invariant: both return the same outputs and the same final state, for every length and chunk size,
up to rounding. Built in notebooks/03_mamba_mixer.ipynb.

    S_t = exp(Δ_t A) S_{t-1} + Δ_t x_t ⊗ B_t          y_t = S_t C_t

Glossary (T tokens, H heads, P head size, N state size; leading batch dimensions are allowed):
    x   [..., T, H, P]   input of each head         dt  [..., T, H]   step sizes Δ, after softplus
    A   [H]              negative decay rates       B C [..., T, N]   shared by all heads
    S   [..., H, P, N]   the state                  y   [..., T, H, P]

Source: Dao and Gu, "Transformers are SSMs" (2024), the scalar-times-identity case.
"""

import torch
from torch import Tensor


def scan_steps(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The definition, one token at a time. Returns y and the final state."""
    outputs = []
    for t in range(x.shape[-3]):
        decay = torch.exp(dt[..., t, :] * A)[..., None, None]  # [..., H, 1, 1]
        dx = dt[..., t, :, None] * x[..., t, :, :]  # [..., H, P]
        state = decay * state + dx[..., None] * B[..., t, None, None, :]
        outputs.append((state * C[..., t, None, None, :]).sum(-1))
    return torch.stack(outputs, dim=-3) if outputs else torch.zeros_like(x), state


def scan_chunks(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """The same sums, grouped: inside a chunk one masked matrix, between chunks one state."""
    outputs = []
    for start in range(0, x.shape[-3], chunk):
        part = slice(start, start + chunk)
        y, state = _scan_chunk(
            x[..., part, :, :], dt[..., part, :], A, B[..., part, :], C[..., part, :], state
        )
        outputs.append(y)
    return torch.cat(outputs, dim=-3) if outputs else torch.zeros_like(x), state


def _scan_chunk(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    length = x.shape[-3]
    log_decay = torch.cumsum((dt * A).transpose(-1, -2), dim=-1)  # [..., H, Q], from chunk start
    dx = (dt[..., None] * x).transpose(-3, -2)  # [..., H, Q, P]

    # How much of token j is left at token i, and how much i asks for it.
    between = log_decay[..., :, None] - log_decay[..., None, :]  # [..., H, Q, Q]
    future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    # Masked before exp: above the diagonal the exponent is positive and could overflow.
    decay = torch.exp(between.masked_fill(future, -torch.inf))
    asked = (C @ B.transpose(-1, -2)).unsqueeze(-3)  # [..., 1, Q, Q]
    y = (decay * asked) @ dx  # [..., H, Q, P]

    # What the tokens before this chunk left behind.
    from_state = C.unsqueeze(-3) @ state.transpose(-1, -2)  # [..., H, Q, P]
    y = y + torch.exp(log_decay)[..., None] * from_state

    left_at_end = torch.exp(log_decay[..., -1:] - log_decay)[..., None]  # [..., H, Q, 1]
    added = (left_at_end * dx).transpose(-1, -2) @ B.unsqueeze(-3)  # [..., H, P, N]
    state = torch.exp(log_decay[..., -1])[..., None, None] * state + added
    return y.transpose(-3, -2), state
