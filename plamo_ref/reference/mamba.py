"""The Mamba mixer of PLaMo 2.

Invariant: the state is a function of all tokens so far and has the same size after every one.
Built in notebooks/03_mamba_mixer.ipynb.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plamo_ref.config import Plamo2Config
from plamo_ref.reference.functions import rms_norm
from plamo_ref.reference.scan import scan_chunks, scan_steps


@dataclass
class MambaState:
    """What a Mamba layer remembers of a sequence: constant in its length."""

    conv: Tensor  # [..., H*P, K-1] the newest inputs of the convolution, oldest first
    ssm: Tensor  # [..., H, P, N] at least float32


class Mamba(nn.Module):
    """Gate and input, short convolution, data-dependent B, C, Δ, the scan, the gate."""

    def __init__(self, config: Plamo2Config, *, chunked: bool) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.mamba_inner_size
        self.heads, self.head_size = config.mamba_num_heads, config.hidden_size_per_head
        self.d_state, self.dt_rank = config.mamba_d_state, config.dt_rank
        self.eps, self.chunked = config.rms_norm_eps, chunked
        self.in_proj = nn.Linear(hidden, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, config.mamba_d_conv, groups=inner, bias=False)
        self.bcdt_proj = nn.Linear(inner, self.dt_rank + 2 * self.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.heads, bias=False)
        self.dt_bias = nn.Parameter(torch.zeros(self.heads))
        self.A_log = nn.Parameter(torch.zeros(self.heads))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.dt_norm_weight = nn.Parameter(torch.ones(self.dt_rank))
        self.B_norm_weight = nn.Parameter(torch.ones(self.d_state))
        self.C_norm_weight = nn.Parameter(torch.ones(self.d_state))
        self.out_proj = nn.Linear(inner, hidden, bias=False)

    def empty_state(self, x: Tensor) -> MambaState:
        batch, width = x.shape[:-2], self.conv1d.kernel_size[0]
        wide = torch.promote_types(x.dtype, torch.float32)
        shape = (*batch, self.heads, self.head_size, self.d_state)
        conv = x.new_zeros(*batch, self.heads * self.head_size, width - 1)
        return MambaState(conv, x.new_zeros(*shape, dtype=wide))

    def forward(
        self, x: Tensor, state: MambaState | None, start: int = 0
    ) -> tuple[Tensor, MambaState]:
        """x [..., T, D] → [..., T, D] and the state. Positions (`start`) do not matter here."""
        state = state or self.empty_state(x)
        # Interleaved per head: P gate channels z, then P input channels x.
        z, u = self.in_proj(x).unflatten(-1, (self.heads, 2, self.head_size)).unbind(-2)
        u, conv = self._convolve(u.flatten(-2), state.conv)

        sizes = (self.d_state, self.d_state, self.dt_rank)
        B, C, dt = self.bcdt_proj(u).split(sizes, dim=-1)  # the file's order: B, C, dt
        B = rms_norm(B, self.B_norm_weight, self.eps)
        C = rms_norm(C, self.C_norm_weight, self.eps)
        dt = self.dt_proj(rms_norm(dt, self.dt_norm_weight, self.eps))  # [..., T, H]

        wide = state.ssm.dtype
        u_heads = u.unflatten(-1, (self.heads, self.head_size)).to(wide)  # [..., T, H, P]
        delta = F.softplus(dt.to(wide) + self.dt_bias.to(wide))  # never clamped
        A = -torch.exp(self.A_log.to(wide))
        scan = scan_chunks if self.chunked else scan_steps
        y, ssm = scan(u_heads, delta, A, B.to(wide), C.to(wide), state.ssm)
        y = (y + self.D.to(wide)[:, None] * u_heads).to(x.dtype)
        return self.out_proj((y * F.silu(z)).flatten(-2)), MambaState(conv, ssm)

    def _convolve(self, u: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        """Depthwise causal convolution and SiLU of u [..., T, H*P]; the last tap is the newest."""
        width, length = self.conv1d.kernel_size[0], u.shape[-2]
        padded = torch.cat((history, u.transpose(-1, -2)), dim=-1)  # [..., H*P, K-1+T]
        taps = self.conv1d.weight[:, 0, :]  # [H*P, K]
        mixed = sum(padded[..., k : k + length] * taps[:, k, None] for k in range(width))
        assert isinstance(mixed, Tensor)  # width is at least 2
        return F.silu(mixed).transpose(-1, -2), padded[..., length:]
