"""States that are written every k tokens: what came since is kept in a ring, and replayed.

    S_t = exp(Δ_t A) S_{t-1} + Δ_t u_t ⊗ B_t        u_t, B_t and Δ_t of one token, about a hundredth
    y_t = S_t C_t + …                               of the bytes of a state

A decode step reads S and writes it back, and moves nearly nothing else. With a ring of k entries it
reads the S of some tokens ago and what came since, and writes one entry; the last of k also writes
S. For k = 8 and an 8B's float32 states that is 1.16 of a state instead of 2, for k = 4 and 16 it is
1.27 and 1.13, and for 32, which is refused, 1.17; of a byte a number, next to which an entry weighs
four times as much, 1.27 for k = 8 and 1.33 for 4 and 16. A state in fewer bits is also rounded k
times less often.

The position p of a token decides, nothing is counted: its entry is number p mod k, and behind
number k - 1 the state is written. A prompt leaves the state itself, so the entries before it must
not count: their Δ is 0, with which S stays what it is. A prompt's next part may follow on decode
steps (the tokens of a found prefix, a part of one token): then the ring goes into the state first.

Invariant: the state that slots stand for is that of twin.py after every step; what is written is
written as it would have been, only less often. A ring belongs to its slot and is copied with it.
"""

import torch
from torch import Tensor

from plamo_ref.config import Plamo2Config
from plamo_ref.kernels.ssm.narrow import ReplayCache, keep, widen
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams, gate, widen_inputs

Place = tuple[tuple[int, ...], torch.dtype]


def ring_places(config: Plamo2Config, tokens: int, dtype: torch.dtype) -> list[Place]:
    """Shape and dtype of what a slot's ring is: u, B and Δ of so many tokens, with activations of
    `dtype`. Of one token, nothing: its state is written at once."""
    heads, size = config.mamba_num_heads, config.hidden_size_per_head
    if tokens == 1:
        return []
    return [
        ((heads, tokens, size), dtype),
        ((tokens, config.mamba_d_state), dtype),
        ((heads, tokens), torch.promote_types(dtype, torch.float32)),
    ]


def new_ring(config: Plamo2Config, tokens: int, weight: Tensor, slots: int) -> list[Tensor]:
    """Rings of so many slots, with `weight`'s dtype and on its device, filled with zeros."""
    places = ring_places(config, tokens, weight.dtype)
    return [weight.new_zeros((slots, *shape), dtype=dtype) for shape, dtype in places]


def replay_state_update(
    inputs: ScanInputs, params: ScanParams, cache: ReplayCache, slots: Tensor, lengths: Tensor
) -> Tensor:
    """As `Kernels.replay_state_update`: y [R, H, P]."""
    u, delta, _, C, A, D = widen_inputs(inputs, params)
    size = cache.ring_delta.shape[-1]
    entry = (lengths - 1).clamp_min(0) % size  # of a padded request: any but the last
    cache.ring_u[slots, :, entry] = inputs.u.to(cache.ring_u.dtype)
    cache.ring_b[slots, entry] = inputs.B.to(cache.ring_b.dtype)
    cache.ring_delta[slots, :, entry] = delta.to(cache.ring_delta.dtype)
    states = _replayed(cache, slots, entry + 1, A, u.dtype)
    _keep(states, cache, slots, A, lengths, entry == size - 1)
    y = (states.flatten(1, 2) @ C[..., None]).view_as(u)
    return gate(y, u, D, inputs.z)


def replay_flush(
    params: ScanParams,
    cache: ReplayCache,
    slots: Tensor,
    query_start_loc: Tensor,
    has_past: Tensor,
    photographs: Tensor,
    lengths: Tensor,
) -> None:
    """As `Kernels.replay_flush`."""
    size = cache.ring_delta.shape[-1]
    before = lengths - query_start_loc.diff()  # tokens that each has taken in
    counts = torch.where(has_past != 0, before % size, 0)
    number = torch.arange(size, device=slots.device)
    some = (cache.ring_delta[slots] > 0) & (number < counts[:, None, None])
    wide = torch.promote_types(cache.ring_delta.dtype, params.A.dtype)
    A = params.A.to(wide)
    states = _replayed(cache, slots, counts, A, wide)
    _keep(states, cache, slots, A, before, some.any((1, 2)))
    cache.ring_delta[slots] = 0
    cache.ring_delta[photographs[:, 2]] = 0


def _replayed(
    cache: ReplayCache, slots: Tensor, counts: Tensor, A: Tensor, wide: torch.dtype
) -> Tensor:
    """The states [R, H, P, N] behind the first `counts` [R] entries of each ring; a copy."""
    states = widen(cache, slots, wide)
    for entry in range(cache.ring_delta.shape[-1]):
        delta = cache.ring_delta[slots, :, entry].to(wide)  # [R, H]
        live = ((entry < counts)[:, None] & (delta != 0))[..., None, None]
        du = delta[..., None] * cache.ring_u[slots, :, entry].to(wide)
        new = torch.exp(delta * A)[..., None, None] * states
        new += du[..., None] * cache.ring_b[slots, entry].to(wide)[:, None, None, :]
        states = torch.where(live, new, states)  # what is not live may be anything
    return states


def _keep(
    states: Tensor, cache: ReplayCache, slots: Tensor, A: Tensor, lengths: Tensor, which: Tensor
) -> None:
    """Write those states of which `which` [R] says so."""
    if which.any():
        keep(states[which], cache, slots[which], A, lengths[which])
