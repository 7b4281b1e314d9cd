"""States kept in fewer bits than they are computed with: bfloat16, or a byte a number.

    scale = max |S| / 448 (e4m3) or / 127 (int8)      of one head of one slot, P·N numbers
    kept  = round(S / scale)                           both written whenever the state is

To the nearest, a number that decays by less than half a unit a step never decays, and what is too
small to be seen in one step is never seen. By chance, a number goes up as often as it is above the
lower neighbour: the error of a step is 0 on average, whatever the step. The chance is a hash of

    the head's A     so that heads and layers differ, and a head does not depend on who computes it
    the position     of the last token that the state has taken in
    the element      of the head's state

and of nothing else: no slot, no row of a batch, no rank. So a request that is cut in the same
places has the same state in any company. Cut elsewhere it has another one: a state is rounded where
a step ends, and in one step with several tokens between them it is not.

Invariant: arithmetic and outputs are those of twin.py; only what a slot keeps is rounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plamo_ref.batch import MambaCache, NarrowCache
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams, scan_prefill, state_update
from plamo_ref.quantization.quantize import TINY

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
MASK = (1 << 32) - 1


@dataclass(frozen=True)
class ReplayCache(NarrowCache):
    """States, plain or not, that are written every k tokens only, and behind each the inputs of the
    tokens since: see replay.py."""

    ring_u: Tensor  # [slots, H, k, P]
    ring_b: Tensor  # [slots, k, N]
    ring_delta: Tensor  # [slots, H, k]; 0: no token

    @property
    def is_plain(self) -> bool:
        """Whether to be stored in its dtype is all that becomes of a state."""
        return self.scales is None and not self.stochastic


def mamba_cache(
    conv: Tensor,
    ssm: Tensor,
    stochastic: bool,
    scales: Tensor | None = None,
    ring: Sequence[Tensor] = (),
) -> MambaCache:
    """The memory of a layer; a plain one where states are only stored in their dtype.

    Args:
        scales: [slots, H], made here if states of a byte a number come without.
        ring: of a `ReplayCache`.
    """
    if scales is None and ssm.dtype in LARGEST:
        scales = ssm.new_zeros(ssm.shape[:2], dtype=torch.float32)
    if ring:
        return ReplayCache(conv, ssm, scales, stochastic, *ring)
    if scales is None and not stochastic:
        return MambaCache(conv, ssm)
    return NarrowCache(conv, ssm, scales, stochastic)


def narrow_state_update(
    inputs: ScanInputs, params: ScanParams, cache: NarrowCache, slots: Tensor, lengths: Tensor
) -> Tensor:
    """As `Kernels.narrow_state_update`: y [R, H, P]."""
    states = widen(cache, slots, torch.promote_types(inputs.u.dtype, torch.float32))
    y = state_update(inputs, params, states, torch.arange(len(slots), device=slots.device))
    keep(states, cache, slots, params.A, lengths)
    return y


def narrow_scan_prefill(
    inputs: ScanInputs,
    params: ScanParams,
    cache: NarrowCache,
    slots: Tensor,
    query_start_loc: Tensor,
    has_past: Tensor,
    photographs: Tensor,
    lengths: Tensor,
) -> Tensor:
    """As `Kernels.narrow_scan_prefill`: y [T, H, P]."""
    own, taken = own_slots(slots, photographs)
    states = widen(cache, slots, torch.promote_types(inputs.u.dtype, torch.float32))
    states = torch.cat((states, states.new_zeros(len(photographs), *states.shape[1:])))
    y = scan_prefill(inputs, params, states, own, query_start_loc, has_past, taken)
    of, count, places = photographs.unbind(1)
    moments = lengths[of] - query_start_loc.diff()[of] + count
    slots, positions = torch.cat((slots, places)), torch.cat((lengths, moments))
    keep(states, cache, slots, params.A, positions)
    return y


def own_slots(slots: Tensor, photographs: Tensor) -> tuple[Tensor, Tensor]:
    """Slots of a memory that has R states and F photographs and no others, and the photographs
    [F, 3] taken into it."""
    places = torch.arange(len(slots) + len(photographs), device=slots.device)
    taken = torch.cat((photographs[:, :2], places[len(slots) :, None]), 1)
    return places[: len(slots)], taken


def widen(cache: NarrowCache, slots: Tensor, wide: torch.dtype) -> Tensor:
    """The states [R, H, P, N] that slots [R] stand for; a copy."""
    numbers = cache.ssm[slots].to(wide)
    if cache.scales is None:
        return numbers
    return numbers * cache.scales[slots].to(wide)[..., None, None]


def keep(states: Tensor, cache: NarrowCache, slots: Tensor, A: Tensor, positions: Tensor) -> None:
    """Write states [R, H, P, N] into slots [R]; positions [R]: tokens that each has taken in."""
    dtype = cache.ssm.dtype
    if cache.scales is not None:
        most = states.abs().amax((2, 3)).clamp_min(TINY)  # [R, H]
        cache.scales[slots] = (most / LARGEST[dtype]).float()
        states = states * (LARGEST[dtype] / most)[..., None, None]
        states = states.clamp(-LARGEST[dtype], LARGEST[dtype])
    drawn = None
    if cache.stochastic:
        drawn = chances(A, positions, states[0, 0].numel()).view_as(states)
    cache.ssm[slots] = rounded(states, dtype, drawn)


def rounded(x: Tensor, dtype: torch.dtype, drawn: Tensor | None) -> Tensor:
    """x in `dtype`: the nearest, or, by numbers `drawn` from [0, 1), one of the two neighbours."""
    if drawn is None:
        return (x.round() if dtype == torch.int8 else x).to(dtype)
    unit = _unit(x, dtype)
    return (torch.floor(x.abs() / unit + drawn) * unit * x.sign()).to(dtype)


def _unit(x: Tensor, dtype: torch.dtype) -> Tensor:
    """How far apart the numbers of `dtype` lie around x."""
    if dtype == torch.int8:
        return torch.ones_like(x)
    exponent = torch.frexp(x).exponent - 1
    if dtype == torch.float8_e4m3fn:
        return torch.ldexp(torch.ones_like(x), exponent.clamp_min(-6) - 3)
    return torch.ldexp(torch.ones_like(x), exponent - 7)


def chances(A: Tensor, positions: Tensor, size: int) -> Tensor:
    """Numbers in [0, 1), of 16 bits, for heads with A [H] at positions [R]: [R, H, size]."""
    head = A.float().view(torch.int32).to(torch.int64) & MASK
    key = _mix(_mix(positions[:, None] & MASK) ^ head)  # [R, H]
    element = torch.arange(size, device=A.device)
    return (_mix((key[..., None] + element) & MASK) >> 16) / 65536


def _mix(x: Tensor) -> Tensor:
    """A hash of 32 bits; int64, because torch has no arithmetic on unsigned numbers.

    Source: Wellons, "Prospecting for Hash Functions" (2018), lowbias32."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)
