"""Tokens from logits by the Triton kernel against its twin, in Triton's interpreter.

Invariant tested: the kernel draws the twin's token for every kind of truncation, whatever equals
stand at a threshold, and over borders of blocks; rows it cannot draw from give the first id.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.sample import twin
from plamo_ref.kernels.sample.triton import sample

KNOB_ROWS = st.tuples(
    st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    st.sampled_from([1, 2, 5, 40, 10**6]),
    st.sampled_from([0.01, 0.37, 0.9, 1.0]),
    st.sampled_from([0.0, 0.013, 0.21, 1.0]),
)


def noise(rows: int, size: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def in_the_middle(logits: Tensor, rows: list[tuple[float, ...]], picks: list[int]) -> Tensor:
    """Knobs whose u is the middle of the share of one kept token: two exponentials may round
    differently, and no rounding reaches the next token from there."""
    table = [[t, min(k, logits.shape[1]), p, m, 0.0] for t, k, p, m in rows]
    knobs = torch.tensor(table, dtype=torch.float64)
    weights = twin.kept_weights(logits.double(), knobs)
    for row, pick in enumerate(picks):
        large = (weights[row] * 1000 > weights[row].sum()).nonzero()[:, 0]
        token = large[pick % len(large)]
        before = weights[row, :token].sum() + weights[row, token] / 2
        knobs[row, 4] = before / weights[row].sum()
    return knobs


@settings(deadline=None, max_examples=20)
@given(
    rows=st.lists(KNOB_ROWS, min_size=1, max_size=3),
    size=st.sampled_from([1, 2, 100, 511, 513, 1000]),
    steps=st.sampled_from([0, 1, 4]),
    seed=st.integers(0, 99),
)
def test_the_kernel_draws_the_twin_s_token(rows, size, steps, seed):
    logits = noise(len(rows), size, seed)
    if steps:
        logits = (logits * steps).round() / steps  # many equals
    knobs = in_the_middle(logits, rows, [seed + i for i in range(len(rows))])
    assert torch.equal(sample(logits, knobs), twin.sample(logits.double(), knobs))


def test_a_published_vocabulary_once():
    logits = noise(3, 100_000)
    logits[1] = logits[1].to(torch.bfloat16).float()  # 130 or so different values
    rows = [(1.0, 50, 0.9, 0.0), (0.8, 10**6, 0.95, 0.0), (1.0, 10**6, 1.0, 0.01)]
    knobs = in_the_middle(logits, rows, [7, 30, 2])
    assert torch.equal(sample(logits, knobs), twin.sample(logits.double(), knobs))


def test_among_equals_the_smaller_ids_are_kept():
    """2,000 equal logits in more than one block, and k of them to keep."""
    logits = torch.zeros(4, 2000)
    logits[:, 5] = 1.0
    knobs = torch.tensor([[1.0, k, 1.0, 0.0, 1 - 2**-53] for k in (1, 2, 700, 2000)])
    knobs = knobs.to(torch.float64)
    assert sample(logits, knobs).tolist() == [5, 5, 699, 1999]
    knobs[:, 4] = 0.0
    assert sample(logits, knobs).tolist() == [5, 0, 0, 0]


def test_greedy_rows_take_the_first_of_the_largest():
    logits = torch.full((3, 1500), -math.inf)
    logits[0, [700, 1400]] = 3.0
    logits[1, 1499] = -1e30
    knobs = torch.tensor([[0.0, 1500, 1, 0, 0.9]] * 3, dtype=torch.float64)
    assert sample(logits, knobs).tolist() == [700, 1499, 0]


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_row_without_a_number_gives_a_token_that_exists():
    logits = noise(3, 600)
    logits[0] = math.nan
    logits[1, 10:] = math.nan
    logits[2] = -math.inf
    knobs = torch.tensor([[1.0, 5, 0.5, 0, 0.9]] * 3, dtype=torch.float64)
    tokens = sample(logits, knobs)
    assert ((tokens >= 0) & (tokens < 600)).all()
    assert tokens[2] == 0


def test_zero_and_minus_zero_are_equals():
    logits = torch.tensor([[0.0, -0.0, 0.0, -5.0]])
    knobs = torch.tensor([[1.0, 2, 1.0, 0.0, u] for u in (0.0, 0.99)], dtype=torch.float64)
    assert sample(logits.expand(2, 4), knobs).tolist() == [0, 1]


@pytest.mark.parametrize("wrong", [torch.zeros(2, 5), torch.zeros(3, 5, dtype=torch.float64)])
def test_knobs_that_do_not_fit_are_named(wrong):
    with pytest.raises(KernelError, match=r"sample: logits \[2, 9\] need knobs \[2, 5\]"):
        sample(torch.zeros(2, 9), wrong)
