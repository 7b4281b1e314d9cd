"""The trials of lesson 11: our answers pass, every slip is told apart, and shortcuts are refused.

Invariant tested: a check passes for kernels alone that do what the formula says, with every number
of a state moved once; what is said to a wrong answer is true of it.
"""

import re
from itertools import combinations

import pytest
import torch
import triton
import triton.language as tl

from plamo_ref.teaching import CheckFailed, check_exercise
from plamo_ref.teaching.dot_rules import DotError, on_a_gpu, tf32
from plamo_ref.teaching.your_mamba import kernels, slow
from plamo_ref.teaching.your_mamba.slips import FORMULAS, MOVES, mistakes
from plamo_ref.teaching.your_mamba.trials import EXERCISES, story, truth


@pytest.mark.parametrize("name", EXERCISES)
def test_our_answer_passes_and_each_slip_is_told_apart(name):
    right, wrong = truth(name), mistakes(name)
    told = story(name, getattr(kernels, name))
    check_exercise("ours", lambda: told, right)
    stories = {sentence: leads_to() for sentence, leads_to in wrong.items()}
    assert len(stories) == len(FORMULAS[name]) + len(MOVES.get(name, ()))
    for sentence, slipped in stories.items():
        with pytest.raises(CheckFailed, match=re.escape(f"Likely: {sentence}")):
            check_exercise("slip", lambda slipped=slipped: slipped, right, mistakes=stories)
    for (_, one), (said, other) in combinations(stories.items(), 2):
        with pytest.raises(CheckFailed):
            check_exercise(said, lambda one=one: one, other)


def test_the_slow_formulas_agree_with_each_other():
    """One token with everything inside is a scan of one token for each request."""
    [given] = EXERCISES["update"].cases()
    where = {"starts": torch.arange(4), "has_past": torch.ones(3)}
    one, many = slow.update(given), slow.scan(given | where)
    assert all(torch.equal(one[name].nan_to_num(), many[name].nan_to_num()) for name in one)


@triton.jit
def idle_kernel(x_ptr):
    tl.load(x_ptr)


@triton.jit
def copy_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < n), mask=i < n)


def by_torch(dt, bias, A, delta, fade):
    delta.copy_(torch.nn.functional.softplus(dt + bias))
    fade.copy_(torch.exp(delta * A))


def for_show(*tensors):
    idle_kernel[(1,)](tensors[0])
    by_torch(*tensors)


def half_of_it(dt, bias, A, delta, fade):
    """One number by a kernel, the rest by torch."""
    by_torch(dt, bias, A, delta, fade)
    copy_kernel[(1,)](dt, delta, 1, BLOCK=16)
    copy_kernel[(1,)](dt, fade, 1, BLOCK=16)


def beyond(dt, bias, A, delta, fade):
    copy_kernel[(1,)](dt, delta, 16, BLOCK=16)


@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        (by_torch, "no kernel stored delta and fade"),
        (for_show, "no kernel stored delta and fade"),
        (half_of_it, "no kernel stored delta and fade"),
        (lambda *tensors: idle_kernel[(1,)](tensors[0]), "nothing is in delta and fade"),
        (beyond, "loads element 15 of dt, which has 15 .*mask"),
    ],
)
def test_what_no_kernel_has_made_and_what_reaches_too_far_is_refused(launcher, said):
    with pytest.raises(CheckFailed, match=said):
        story("decay", launcher)


def test_an_open_stub_is_open():
    def stub(*tensors):
        raise NotImplementedError

    with pytest.raises(NotImplementedError):
        story("walk", stub)


def test_products_in_tf32_are_named(monkeypatch):
    monkeypatch.setattr(kernels, "precision", lambda dtype: "tf32")
    for name in ("chunk", "scan"):
        with pytest.raises(CheckFailed, match=r'three digits are right.*"tf32x3"'):
            story(name, getattr(kernels, name))


def test_a_product_too_small_for_a_gpu_is_refused_and_then_all_is_as_before():
    u, delta, A, B, C, state, y = (torch.ones(8, 8) for _ in range(7))
    sizes = {"Q": 8, "BLOCK_P": 16, "BLOCK_N": 16, "PRECISION": "ieee"}

    def launch():
        kernels.chunk_kernel[(1,)](u, delta, A, B, C, state, y, 8, 8, 8, **sizes)

    with (
        pytest.raises(Exception, match=r"inner dimension is 8, .*asks for 16") as refused,
        on_a_gpu(),
    ):
        launch()
    cause = refused.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, DotError)
    launch()


def test_tf32_has_ten_bits_of_fraction():
    x = torch.tensor([1 / 3, 1 + 2**-10, 1 + 2**-12, -1 - 2**-11, -1 - 3 * 2**-11, torch.inf, 0])
    kept = tf32(x.numpy()).tolist()
    assert kept[1:] == [1 + 2**-10, 1, -1, -1 - 2**-9, torch.inf, 0]
    assert 2**-14 < abs(kept[0] - 1 / 3) < 2**-12
