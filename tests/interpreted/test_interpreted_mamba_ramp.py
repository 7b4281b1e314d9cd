"""The trials of lesson 11: our answers pass, slips are told apart, products obey a GPU's rules.

Invariant tested: what is said to a wrong answer is true of it alone; a kernel that passes in the
interpreter neither asks a GPU for too small a product nor for more digits than it gives.
(What is said to whom: course/wrong_answers, tried by tests/tools.)
"""

from itertools import combinations

import pytest
import torch

from plamo_ref.teaching import CheckFailed
from plamo_ref.teaching.dot_rules import DotError, on_a_gpu, tf32
from plamo_ref.teaching.kernel_checks import check_kernel
from plamo_ref.teaching.mamba_ramp import kernels, slow
from plamo_ref.teaching.mamba_ramp.slips import FORMULAS
from plamo_ref.teaching.mamba_ramp.trials import EXERCISES, formula, mistakes, run, trials


def checked(name, launcher):
    kernel = getattr(kernels, EXERCISES[name].programs[0])
    check_kernel(name, run(name, launcher), [kernel], trials(name), mistakes=mistakes(name))


@pytest.mark.parametrize("name", EXERCISES)
def test_our_answer_passes(name, capsys):
    checked(name, getattr(kernels, name))
    assert capsys.readouterr().out == f"✓ {name} (within 1e-05)\n"


@pytest.mark.parametrize("name", EXERCISES)
def test_each_slip_changes_the_numbers_and_no_two_lead_to_the_same(name):
    found = {said: [leads(t) for t in trials(name)] for said, leads in mistakes(name).items()}
    assert len(found) == len(FORMULAS[name])
    found["no slip"] = [formula(name, trial) for trial in trials(name)]
    for (said, one), (other, two) in combinations(found.items(), 2):
        same = all(
            torch.allclose(a[key], b[key], rtol=1e-3, atol=1e-3, equal_nan=True)
            for a, b in zip(one, two, strict=True)
            for key in a
        )
        assert not same, f"{said} and {other}"


def test_the_slow_formulas_agree_with_each_other():
    """One token with everything inside is a scan of one token for each request."""
    [given] = EXERCISES["update"].cases()
    where = {"starts": torch.arange(4), "has_past": torch.ones(3)}
    one, many = slow.update(given), slow.scan(given | where)
    assert all(torch.equal(one[name].nan_to_num(), many[name].nan_to_num()) for name in one)


def test_an_open_stub_is_open(capsys):
    def stub(*tensors):
        raise NotImplementedError

    checked("walk", stub)
    assert capsys.readouterr().out == "○ walk: yours to do\n"


def test_numbers_by_torch_are_refused():
    def by_torch(dt, bias, A, delta, fade):
        delta.copy_(torch.nn.functional.softplus(dt + bias))
        fade.copy_(torch.exp(delta * A))

    with pytest.raises(CheckFailed, match="by no kernel"):
        checked("decay", by_torch)


def test_products_in_tf32_are_named(monkeypatch):
    monkeypatch.setattr(kernels, "precision", lambda dtype: "tf32")
    for name in ("chunk", "scan"):
        with pytest.raises(CheckFailed, match=r'three digits are right.*"tf32x3"'):
            checked(name, getattr(kernels, name))


def test_a_product_too_small_for_a_gpu_is_refused_and_then_all_is_as_before():
    u, delta, A, B, C, state, y = (torch.ones(8, 8) for _ in range(7))
    sizes = {"Q": 8, "BLOCK_P": 16, "BLOCK_N": 16, "PRECISION": "ieee"}

    def launch():
        kernels.chunk_kernel[(1,)](u, delta, A, B, C, state, y, 8, 8, 8, **sizes)

    with pytest.raises(Exception, match=r"inner dimension is 8, .*no less than 16") as refused:  # noqa: SIM117
        with on_a_gpu():
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
