"""The short causal convolution in front of the scan, with its memory in state slots.

    y_t = silu( Σ_k w[:, k] · u_{t-K+1+k} )        u_s for s < 0 comes from the slot (or is 0)

Glossary: T tokens, R requests, C channels (heads · head size), K taps, the last for the newest
input; a slot keeps the newest K-1 inputs, oldest first: [C, K-1].

Invariant: only the given slots are written; a request without a past starts from zeros whatever
its slot holds.
Built in notebooks/03_mamba_mixer.ipynb.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def conv_update(u: Tensor, weight: Tensor, cache: Tensor, slots: Tensor) -> Tensor:
    """As `Kernels.conv_update`: u [R, C] or [R, H, P] → [R, C]."""
    u = u.flatten(1)
    inputs = torch.cat((cache[slots], u[..., None]), dim=-1)  # [R, C, K]
    cache[slots] = inputs[..., 1:]
    return F.silu((inputs * weight).sum(-1))


def conv_prefill(
    u: Tensor,
    weight: Tensor,
    cache: Tensor,
    slots: Tensor,
    query_start_loc: Tensor,
    has_past: Tensor,
    photographs: Tensor | None = None,
) -> Tensor:
    """As `Kernels.conv_prefill`, one request after the other: u [T, C] or [T, H, P] → [T, C]."""
    u = u.flatten(1)
    taps, out = weight.shape[-1], torch.empty_like(u)
    starts = query_start_loc.tolist()
    past = cache[slots].masked_fill(has_past[:, None, None] == 0, 0)  # [R, C, K-1]
    moments = [] if photographs is None else photographs.tolist()
    for row, (start, end) in enumerate(pairwise(starts)):
        padded = torch.cat((past[row], u[start:end].T), dim=-1)  # [C, K-1+Q]
        taken = [padded[:, k : k + end - start] for k in range(taps)]
        windows = torch.stack(taken, dim=-1)  # [C, Q, K]; Q may be 0
        out[start:end] = F.silu((windows * weight[:, None, :]).sum(-1)).T
        cache[slots[row]] = padded[:, end - start :]
        for count, slot in ((count, slot) for of, count, slot in moments if of == row):
            cache[slot] = padded[:, count : count + taps - 1]
    return out
