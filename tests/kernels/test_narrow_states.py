"""States kept in few bits, by the twins: what is written, and what chance depends on.

Invariant tested: what is kept is the nearest number or, by chance, a neighbour of the state, and
then right on average; chance knows the head, the position and the element, and nothing of the
company; a photograph is what a slot would have if the request's tokens ended there.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from plamo_ref.batch import NarrowCache
from plamo_ref.bench.kernels.cases import SMALL, Maker
from plamo_ref.bench.kernels.state_cases import NARROW, narrow_cache, scan_inputs, scan_params
from plamo_ref.bench.kernels.timing import copied
from plamo_ref.engine.fast.custom_ops import compiled_table, opaque
from plamo_ref.kernels.choice import TORCH
from plamo_ref.kernels.ssm.narrow import LARGEST, chances, keep, rounded, widen
from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams
from plamo_ref.kernels.table import Kernels

CPU, F64 = torch.device("cpu"), torch.float64
FP8, INT8, BF16 = torch.float8_e4m3fn, torch.int8, torch.bfloat16
SHAPE = SMALL[0]  # two heads of 16 × 8
KEPT = pytest.mark.parametrize(("dtype", "stochastic"), NARROW)


def made(dtype: torch.dtype, stochastic: bool, slots: int = 8) -> tuple[Maker, NarrowCache]:
    make = Maker(CPU, F64)
    shape = (slots, SHAPE.mamba_heads, SHAPE.size, SHAPE.state)
    return make, narrow_cache(make, torch.arange(slots), shape, dtype, stochastic)


def content(cache: NarrowCache, slots: list[int]) -> list[Tensor]:
    """Every byte of some slots."""
    parts = [cache.ssm[slots].view(torch.uint8)]
    return parts if cache.scales is None else [*parts, cache.scales[slots]]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [FP8, INT8, BF16])
def test_chance_takes_one_of_two_neighbours_and_is_right_on_average(dtype):
    x = torch.tensor([0.3, -0.3, 1.07, -33.3, 100.2, 0.004, -0.0011, 126.99], dtype=F64)
    every = torch.arange(256, dtype=torch.uint8).view(torch.int8 if dtype == INT8 else FP8)
    drawn = (torch.arange(4096, dtype=F64)[:, None] / 4096).expand(-1, len(x))
    got = rounded(x.expand(4096, -1), dtype, drawn).to(F64)
    if dtype != BF16:
        grid = every.to(F64)
        grid = grid[~grid.isnan()].unique()
        above = torch.searchsorted(grid, x)
        ends = torch.stack((grid[above - 1], grid[above]))
        assert ((got == ends[0]) | (got == ends[1])).all()
    unit = (got.amax(0) - got.amin(0)).abs()
    assert (unit > 0).all()
    assert ((got.mean(0) - x).abs() <= unit / 2000).all()


def test_to_the_nearest_a_slow_decay_never_happens_and_by_chance_it_does():
    """exp(Δ A) = 0.999 over 1,000 steps: what is left of a state is 0.37 of it."""
    left = {}
    for dtype, stochastic in NARROW:
        _, cache = made(dtype, stochastic, slots=1)
        slots, A = torch.zeros(1, dtype=torch.int64), torch.tensor([-1.0, -2.0])
        start = torch.linspace(0.2, 1, 256, dtype=F64).view(1, 2, 16, 8)
        keep(start, cache, slots, A, torch.tensor([0]))
        fixed = start[..., -1, -1:]  # something that stays: else the scale would decay for all
        for step in range(1, 1001):
            state = widen(cache, slots, F64) * 0.999
            state[..., -1, -1:] = fixed
            keep(state, cache, slots, A, torch.tensor([step]))
        ratio = widen(cache, slots, F64) / start
        left[dtype, stochastic] = ratio[..., :-1, :].mean().item()
    assert left[FP8, False] > 0.9
    assert left[INT8, False] > 0.9
    for dtype in (FP8, INT8, BF16):
        assert left[dtype, True] == pytest.approx(0.999**1000, rel=0.05)


@KEPT
def test_what_is_kept_is_within_a_unit(dtype, stochastic):
    make, cache = made(dtype, stochastic)
    states = (
        make.noise(3, 2, 16, 8) * torch.tensor([1e-3, 1.0, 1e4], dtype=F64)[:, None, None, None]
    )
    slots = torch.tensor([4, 1, 6])
    keep(states, cache, slots, torch.tensor([-1.0, -3.0]), torch.tensor([3, 4, 5]))
    got, most = widen(cache, slots, F64), states.abs().amax((2, 3), keepdim=True)
    share = 1.0 if stochastic else 0.5
    unit = {INT8: most / 127, FP8: states.abs() / 8 + most / 448 / 512, BF16: states.abs() / 128}
    assert ((got - states).abs() <= share * unit[dtype] * (1 + 1e-6)).all()
    if cache.scales is not None:  # the largest number of a head is kept as it is
        torch.testing.assert_close(got.abs().amax((2, 3), keepdim=True), most, rtol=1e-6, atol=0)
        assert cache.ssm[slots].to(F64).abs().amax() == LARGEST[dtype]


def test_a_state_of_zeros_stays_one():
    for dtype, stochastic in NARROW:
        _, cache = made(dtype, stochastic)
        slots = torch.tensor([2])
        keep(torch.zeros(1, 2, 16, 8), cache, slots, torch.tensor([-1.0, -3.0]), slots)
        assert not widen(cache, slots, F64).any()


def test_chance_is_even_and_differs_by_head_position_and_element():
    A, positions = torch.tensor([-1.0, -1.0000001, -7.5]), torch.tensor([0, 1, 2, 100_000])
    drawn = chances(A, positions, 8192)
    assert drawn.shape == (4, 3, 8192)
    rows = drawn.flatten(0, 1)
    assert ((rows.mean(1) - 0.5).abs() < 0.02).all()
    assert (rows.std(1) - 12**-0.5).abs().max() < 0.01
    between = torch.corrcoef(rows).fill_diagonal_(0)
    assert between.abs().max() < 0.06  # 8,192 numbers: 0.011 is one standard deviation
    steps = torch.corrcoef(chances(A[:1], torch.arange(500), 400)[:, 0].T).fill_diagonal_(0)
    assert steps.abs().mean() < 0.05  # of an element from position to position


@KEPT
def test_a_request_has_the_same_state_in_any_company(dtype, stochastic):
    """Other rows, other slots, other ranks: half of the heads alone."""
    make, cache = made(dtype, stochastic)
    inputs, params = scan_inputs(make, SHAPE, 3), scan_params(make, SHAPE.mamba_heads)
    slots, lengths = torch.tensor([5, 2, 7]), torch.tensor([9, 30, 4])
    together, alone = copied(cache), copied(cache)
    y = TORCH.narrow_state_update(inputs, params, together, slots, lengths)
    alone.ssm[3] = cache.ssm[2]
    if cache.scales is not None:
        alone.scales[3] = cache.scales[2]
    own = TORCH.narrow_state_update(
        inputs.rows(slice(1, 2)), params, alone, torch.tensor([3]), lengths[1:2]
    )
    torch.testing.assert_close(own[0], y[1], rtol=1e-12, atol=1e-12)
    assert same(content(alone, [3]), content(together, [2]))

    head = slice(1, 2)
    part = NarrowCache(
        cache.conv,
        cache.ssm[:, head].clone(),
        None if cache.scales is None else cache.scales[:, head].clone(),
        stochastic,
    )
    half = ScanInputs(inputs.u[:, head], inputs.z[:, head], inputs.dt[:, head], inputs.B, inputs.C)
    weights = ScanParams(*(p[head] for p in vars(params).values()))
    TORCH.narrow_state_update(half, weights, part, slots, lengths)
    assert torch.equal(part.ssm.view(torch.uint8), together.ssm[:, head].view(torch.uint8))


@KEPT
def test_a_photograph_is_what_a_prompt_of_so_many_tokens_leaves(dtype, stochastic):
    make, cache = made(dtype, stochastic)
    inputs, params = scan_inputs(make, SHAPE, 12), scan_params(make, SHAPE.mamba_heads)
    slots, starts = torch.tensor([3, 4]), torch.tensor([0, 5, 12])
    past, lengths = torch.tensor([1, 0]), torch.tensor([25, 7])
    whole, part = copied(cache), copied(cache)
    moments = torch.tensor([[0, 2, 6], [1, 7, 7], [0, 0, 0]])
    TORCH.narrow_scan_prefill(inputs, params, whole, slots, starts, past, moments, lengths)
    none = moments[:0]
    first = (inputs.rows(slice(2)), params, part, slots[:1], torch.tensor([0, 2]), past[:1])
    TORCH.narrow_scan_prefill(*first, none, torch.tensor([22]))
    assert same(content(whole, [6]), content(part, [3]))
    assert same(content(whole, [7]), content(whole, [4]))
    untouched = [1, 2, 5]
    assert same(content(whole, untouched), content(cache, untouched))


@KEPT
def test_one_step_and_a_prompt_of_one_token_keep_the_same(dtype, stochastic):
    make, cache = made(dtype, stochastic)
    inputs, params = scan_inputs(make, SHAPE, 1), scan_params(make, SHAPE.mamba_heads)
    slots, lengths, none = torch.tensor([3]), torch.tensor([12]), torch.zeros(0, 3).long()
    step, prompt = copied(cache), copied(cache)
    TORCH.narrow_state_update(inputs, params, step, slots, lengths)
    where = (slots, torch.tensor([0, 1]), torch.tensor([1]), none, lengths)
    TORCH.narrow_scan_prefill(inputs, params, prompt, *where)
    assert same(content(step, [3]), content(prompt, [3]))


@KEPT
def test_a_compiled_layer_keeps_the_same(dtype, stochastic):
    """The box that a compiler does not open, called as a compiled layer calls it."""
    from plamo_ref.batch import ForwardBatch, Room

    make, cache = made(dtype, stochastic)
    batch = ForwardBatch.empty(Room(2, 1, 3, ()), CPU)
    batch.seq_lens[:] = torch.tensor([8, 9, 3])
    batch.state_slots[:] = torch.tensor([1, 2, 5])
    batch.prefill_start_loc[1] = 3
    inputs, params = scan_inputs(make, SHAPE, 5), scan_params(make, SHAPE.mamba_heads)
    found = []
    tables: list[Kernels] = [TORCH, compiled_table("torch")]
    for table in tables:
        own = copied(cache)
        y = table.scan(inputs, params, opaque(batch), own)
        found.append([y, *content(own, [1, 2, 5])])
    assert same(*found)
    assert not same(found[0][1:], content(replace(cache), [1, 2, 5]))
