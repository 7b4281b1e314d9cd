"""States that are written every k tokens, by the twins: what stands in a slot after each step.

Invariant tested: outputs are those of a state that is written at each token, in float64 to the last
bits; between two writes no bit of a state changes, and what is then written is rounded once; a
prompt finds what the ring holds, and leaves one in which nothing counts, be it NaN.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch, NarrowCache, Room
from plamo_ref.bench.kernels.cases import SMALL, Maker
from plamo_ref.bench.kernels.replay_cases import replay_cache
from plamo_ref.bench.kernels.state_cases import NARROW, narrow_cache, scan_inputs, scan_params
from plamo_ref.bench.kernels.timing import copied
from plamo_ref.engine.fast.custom_ops import compiled_table, opaque
from plamo_ref.kernels.choice import TORCH
from plamo_ref.kernels.ssm.narrow import ReplayCache, keep, widen
from plamo_ref.kernels.ssm.replay import ring_places
from plamo_ref.kernels.table import Kernels
from plamo_ref.proof.lab import lab_config

CPU, F64 = torch.device("cpu"), torch.float64
SHAPE = SMALL[0]  # two heads of 16 × 8
HEADS, SIZE, STATE = SHAPE.mamba_heads, SHAPE.size, SHAPE.state
CLOSE = {"rtol": 1e-12, "atol": 1e-13}
KEPT = pytest.mark.parametrize(("dtype", "stochastic"), NARROW)


def ints(*values: int) -> Tensor:
    return torch.tensor(values)


def ring_of(ssm: Tensor, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nothing but NaN: whoever takes a slot has to empty it."""
    slots = len(ssm)
    shapes = (slots, HEADS, tokens, SIZE), (slots, tokens, STATE), (slots, HEADS, tokens)
    u, b, delta = (torch.full(shape, math.nan, dtype=F64) for shape in shapes)
    return u, b, delta


def exact(tokens: int, slots: int = 4) -> tuple[Maker, ReplayCache]:
    make = Maker(CPU, F64)
    ssm = make.noise(slots, HEADS, SIZE, STATE)
    return make, ReplayCache(ssm, ssm, None, False, *ring_of(ssm, tokens))


def narrow(dtype: torch.dtype, stochastic: bool, tokens: int) -> tuple[Maker, ReplayCache]:
    make = Maker(CPU, F64)
    cache = narrow_cache(make, torch.arange(4), (4, HEADS, SIZE, STATE), dtype, stochastic)
    ring = ring_of(cache.ssm, tokens)
    return make, ReplayCache(cache.ssm, cache.ssm, cache.scales, stochastic, *ring)


def bits(cache: NarrowCache, slots: Tensor) -> list[Tensor]:
    parts = [cache.ssm[slots].view(torch.uint8)]
    return parts if cache.scales is None else [*parts, cache.scales[slots]]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def prompt_of(count: int, slot: int = 1, past: int = 0) -> tuple[Tensor, ...]:
    """Where a prompt's part stands: slots, starts, has_past, photographs, lengths."""
    none = torch.zeros(0, 3, dtype=torch.int64)
    return ints(slot), ints(0, count), ints(int(past > 0)), none, ints(past + count)


@pytest.mark.parametrize("tokens", [2, 3, 4, 7, 16])
@pytest.mark.parametrize("length", [1, 4, 6])
def test_outputs_are_those_of_a_state_that_is_always_written(tokens, length):
    """Behind a prompt of any length: two requests, at different places of their rings."""
    make, cache = exact(tokens)
    params, slots = scan_params(make, HEADS), ints(1, 3)
    plain = cache.ssm.clone()
    lengths = ints(length, length + 2)
    where = ints(1, 3), ints(0, length, 2 * length + 2), ints(0, 0)
    TORCH.replay_flush(params, cache, *where, torch.zeros(0, 3, dtype=torch.int64), lengths)
    for step in range(3 * tokens):
        lengths += 1
        inputs, before = scan_inputs(make, SHAPE, 2), cache.ssm.clone()
        y = TORCH.replay_state_update(inputs, params, cache, slots, lengths)
        expected = TORCH.state_update(inputs, params, plain, slots)
        torch.testing.assert_close(y, expected, **CLOSE)
        for slot, count in zip(slots.tolist(), lengths.tolist(), strict=True):
            if count % tokens:
                assert torch.equal(cache.ssm[slot], before[slot]), f"step {step}"
            else:
                torch.testing.assert_close(cache.ssm[slot], plain[slot], **CLOSE)
    assert torch.equal(cache.ssm[[0, 2]], plain[[0, 2]]), "nobody's"


@KEPT
def test_a_narrow_state_is_rounded_once_in_k_tokens(dtype, stochastic):
    make, cache = narrow(dtype, stochastic, tokens=4)
    params, slot = scan_params(make, HEADS), ints(2)
    TORCH.replay_flush(params, cache, *prompt_of(8, slot=2))
    wide = widen(cache, slot, F64)
    for length in (9, 10, 11, 12):
        before, inputs = bits(copied(cache), slot), scan_inputs(make, SHAPE, 1)
        y = TORCH.replay_state_update(inputs, params, cache, slot, ints(length))
        expected = TORCH.state_update(inputs, params, wide, ints(0))
        torch.testing.assert_close(y, expected, **CLOSE)
        assert same(bits(cache, slot), before) == (length < 12)
    once = copied(cache)
    keep(wide, once, slot, params.A, ints(12))
    # To a unit of chance: the sums' last bits may differ.
    a, b = widen(cache, slot, F64), widen(once, slot, F64)
    assert float((a != b).double().mean()) < 0.01


@KEPT
def test_a_state_that_forgets_nothing_drifts_less(dtype, stochastic):
    """64 tokens, rounded 64 times or 8; by chance the errors of n roundings add up to √n."""

    def error(tokens: int) -> float:
        make, cache = narrow(dtype, stochastic, tokens)
        slot, params = ints(1), scan_params(make, HEADS)
        params.A.fill_(-1e-4), params.dt_bias.zero_()
        TORCH.replay_flush(params, cache, *prompt_of(64))
        wide, kept = widen(cache, slot, F64), replace(cache)
        for length in range(65, 129):
            inputs = scan_inputs(make, SHAPE, 1)
            TORCH.state_update(inputs, params, wide, ints(0))
            if tokens == 1:
                TORCH.narrow_state_update(inputs, params, kept, slot, ints(length))
            else:
                TORCH.replay_state_update(inputs, params, kept, slot, ints(length))
        return float((widen(kept, slot, F64) - wide).norm())

    assert error(8) < 0.7 * error(1)


@KEPT
def test_a_prompt_goes_on_behind_decode_steps(dtype, stochastic):
    """In the middle of a ring: the state goes in, and the ring is empty, as if nothing had been."""
    make, cache = narrow(dtype, stochastic, tokens=5)
    params, slot = scan_params(make, HEADS), ints(1)
    TORCH.replay_flush(params, cache, *prompt_of(6))
    wide = widen(cache, slot, F64)
    for length in (7, 8):
        inputs = scan_inputs(make, SHAPE, 1)
        TORCH.replay_state_update(inputs, params, cache, slot, ints(length))
        TORCH.state_update(inputs, params, wide, ints(0))
    expected = copied(cache)
    keep(wide, expected, slot, params.A, ints(8))
    TORCH.replay_flush(params, cache, *prompt_of(3, past=8))
    assert float((widen(cache, slot, F64) != widen(expected, slot, F64)).double().mean()) < 0.01
    assert not cache.ring_delta[1].any()
    again = copied(cache)  # nothing is there any more: nothing is rounded once more
    TORCH.replay_flush(params, again, *prompt_of(1, past=11))
    assert same(bits(again, slot), bits(cache, slot))


def test_an_empty_ring_may_be_full_of_nan():
    make, cache = exact(tokens=4)
    params, slot, inputs = scan_params(make, HEADS), ints(1), scan_inputs(make, SHAPE, 1)
    plain = cache.ssm.clone()
    TORCH.replay_flush(params, cache, *prompt_of(7))
    assert cache.ring_u[1].isnan().all()
    y = TORCH.replay_state_update(inputs, params, cache, slot, ints(8))  # entry 3: a write
    expected = TORCH.state_update(inputs, params, plain, slot)
    torch.testing.assert_close(y, expected, **CLOSE)
    torch.testing.assert_close(cache.ssm[1], plain[1], **CLOSE)


def test_a_photographs_slot_is_emptied_and_its_neighbours_are_not():
    make, cache = exact(tokens=3)
    params, (slots, starts, past, _, lengths) = scan_params(make, HEADS), prompt_of(9)
    TORCH.replay_flush(params, cache, slots, starts, past, ints(0, 5, 3)[None], lengths)
    assert not cache.ring_delta[[1, 3]].any()
    assert cache.ring_delta[[0, 2]].isnan().all()


def test_padding_never_writes_a_state():
    make, cache = exact(tokens=2)
    before, inputs = cache.ssm.clone(), scan_inputs(make, SHAPE, 2)
    for _ in range(3):
        TORCH.replay_state_update(inputs, scan_params(make, HEADS), cache, ints(0, 0), ints(0, 0))
    assert torch.equal(cache.ssm, before)


@pytest.mark.parametrize("kept", [(F64, False), *NARROW])
def test_a_compiled_layer_keeps_the_same(kept):
    """The box that a compiler does not open, called as a compiled layer calls it."""
    make = Maker(CPU, F64)
    slots = ints(1, 2, 5)
    own = kept if kept[0] != F64 else (torch.float32, False)
    cache = replay_cache(make, SHAPE, slots, [7, 8, 0], 4, own)
    batch = ForwardBatch.empty(Room(2, 1, 3, ()), CPU)
    batch.seq_lens[:] = torch.tensor([8, 9, 3])
    batch.state_slots[:] = slots
    batch.prefill_start_loc[1] = 3
    inputs, params = scan_inputs(make, SHAPE, 5), scan_params(make, HEADS)
    found = []
    tables: list[Kernels] = [TORCH, compiled_table("torch")]
    for table in tables:
        its = copied(cache)
        y = table.scan(inputs, params, opaque(batch), its)
        found.append([y, *bits(its, slots), its.ring_delta[[1, 2, 5]].nan_to_num(9.0)])
    assert same(*found)
    assert found[0][0].isfinite().all()
    assert not found[0][-1][2].any(), "the prompt's ring is empty"


def test_a_ring_of_one_token_is_none():
    config = lab_config()
    assert ring_places(config, 1, F64) == []
    assert config.ring_bytes(1) == 0
    for tokens, dtype in ((2, F64), (8, torch.bfloat16)):
        places = ring_places(config, tokens, dtype)
        count = sum(torch.Size(shape).numel() * its.itemsize for shape, its in places)
        layers = len(config.layers_of("mamba"))
        assert config.ring_bytes(tokens, dtype.itemsize) == layers * count
