"""Launches are counted, and a kernel's check passes only if the kernel did the work.

Invariant tested: the right kernel passes; the same numbers made in any other way are refused, each
with words about what was done.
"""

import pytest
import torch
import triton
import triton.language as tl

from plamo_ref.teaching.checks import CheckFailed
from plamo_ref.teaching.kernel_checks import Trial, check_kernel, unwritten
from plamo_ref.teaching.launches import LaunchError, counting, is_interpreted, lane


@triton.jit
def double_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, 2 * tl.load(x_ptr + i, mask=i < n), mask=i < n)


@triton.jit
def greedy_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    if tl.program_id(0) == 0:
        tl.store(out_ptr + i, 2 * tl.load(x_ptr + i, mask=i < n), mask=i < n)


@triton.jit
def idle_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    pass


@triton.jit
def open_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    raise NotImplementedError


@triton.jit
def twice_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, 2 * tl.load(x_ptr + i, mask=i < n), mask=i < n)


@triton.jit
def writing_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = 2 * tl.load(x_ptr + i, mask=i < n)
    tl.store(out_ptr + i, x, mask=i < n)
    tl.store(x_ptr + i, x, mask=i < n)


def trial(n: int = 10, least: int = 3, name: str = "double_kernel") -> Trial:
    x = torch.arange(float(n)) - 3
    return Trial({"x": x, "out": unwritten(n)}, {"out": 2 * x}, {name: least})


def double(x, out):
    double_kernel[(triton.cdiv(len(x), 4),)](x, out, len(x), BLOCK=4)


def verdict(run, kernel=double_kernel, **changed) -> str:
    with pytest.raises(CheckFailed) as failed:
        check_kernel("doubled", run, [kernel], [trial(name=kernel.__name__)], **changed)
    return str(failed.value)


def test_launches_are_counted_with_their_grid_and_arguments():
    x, out = torch.arange(10.0), torch.zeros(10)
    with counting(double_kernel) as seen:
        double_kernel[(3,)](x, out, 10, BLOCK=4)
        double_kernel[lambda given: (given["n"] // given["BLOCK"], 2)](x, out, 8, BLOCK=4)
    assert [launch.programs for launch in seen] == [3, 4]
    assert (seen[0].kernel, seen[1].grid) == ("double_kernel", (2, 2))
    assert seen[0].tensors["out_ptr"] is out
    double_kernel[(1,)](x, out, 4, BLOCK=4)
    assert len(seen) == 2, "counted behind the block's end"
    assert "run" not in vars(double_kernel)


def test_what_is_no_kernel_is_refused():
    with pytest.raises(LaunchError, match=r"double is no kernel.*@triton\.jit"), counting(double):
        pass


def test_the_lane_is_the_interpreter_where_it_was_asked_for():
    assert lane() == torch.device("cpu")
    assert is_interpreted(double_kernel)


def test_a_kernel_passes_on_all_its_trials(capsys):
    check_kernel("doubled", double, [double_kernel], [trial(), trial(7, 2)])
    assert capsys.readouterr().out.startswith("✓ doubled")


def test_an_open_stub_is_reported_as_open(capsys):
    def stub(x, out):
        raise NotImplementedError

    def half_a_stub(x, out):
        open_kernel[(3,)](x, out, 10, BLOCK=4)

    check_kernel("doubled", stub, [double_kernel], [trial()])
    check_kernel("doubled", half_a_stub, [open_kernel], [trial()])
    assert capsys.readouterr().out == 2 * "○ doubled: yours to do\n"


def test_the_same_numbers_without_a_kernel_are_refused():
    def by_torch(x, out):
        out.copy_(2 * x)

    def before(x, out):
        out.copy_(2 * x)
        idle_kernel[(3,)](x, out, 10, BLOCK=4)

    def after(x, out):
        idle_kernel[(3,)](x, out, 10, BLOCK=4)
        out.copy_(2 * x)

    def elsewhere(x, out):
        double_kernel[(3,)](x.clone(), out, 10, BLOCK=4)

    assert "by no kernel" in verdict(by_torch)
    assert "was changed before idle_kernel ran" in verdict(before, idle_kernel)
    assert "after the last launch" in verdict(after, idle_kernel)
    assert "got a x_ptr that is none of x, out" in verdict(elsewhere)
    assert "never launched" in verdict(lambda x, out: None)


def test_too_few_programs_are_refused_whether_launched_or_idle():
    def alone(x, out):
        double_kernel[(1,)](x, out, 10, BLOCK=16)

    def one_by_one(x, out):
        for i in range(10):
            double_kernel[(1,)](x[i:], out[i:], 1, BLOCK=1)

    def others_watch(x, out):
        greedy_kernel[(3,)](x, out, 10, BLOCK=16)

    assert "ran as 1 program;" in verdict(alone)
    assert "ran as 1 program;" in verdict(one_by_one)
    assert "1 program stored anything" in verdict(others_watch, greedy_kernel)


def test_what_a_kernel_did_wrong_is_named():
    def longer(x, out):
        double_kernel[(3,)](x, out, 12, BLOCK=4)

    def shorter(x, out):
        double_kernel[(3,)](x, out, 9, BLOCK=4)

    def everybody(x, out):
        twice_kernel[(3,)](x, out, 10, BLOCK=16)

    def writes(x, out):
        writing_kernel[(3,)](x, out, 10, BLOCK=4)

    def raises(x, out):
        double_kernel[(3,)](x, out, 10, BLOCK=5)

    assert "loads element 10 of x, which has 10 (0 to 9): is a mask missing?" in verdict(longer)
    assert "nobody stored out[9]; 1 of 10 elements are empty" in verdict(shorter)
    assert "stored more than once" in verdict(everybody, twice_kernel)
    assert "x is an input, and was written to" in verdict(writes, writing_kernel)
    assert "your code raised ValueError" in verdict(raises)
    assert "Look at: the grid" in verdict(shorter, hint="the grid")


def test_a_known_mistake_is_told_and_the_expected_value_is_not():
    x = torch.arange(10.0)
    wanted = Trial({"x": x, "out": unwritten(10)}, {"out": 7 * x}, {"double_kernel": 3})
    known = {"three times": lambda t: 3 * t.given["x"], "only twice": lambda t: 2 * t.given["x"]}
    with pytest.raises(CheckFailed) as failed:
        check_kernel("seven times", double, [double_kernel], [wanted], mistakes=known)
    assert "Likely: only twice" in str(failed.value)
    assert "got 2, which is not it" in str(failed.value)


def test_what_is_nobodys_must_stay_as_it_was():
    x = torch.arange(10.0)
    expected = (2 * x).index_fill(0, torch.tensor([4]), torch.nan)
    partly = Trial({"x": x, "out": unwritten(10)}, {"out": expected}, {"double_kernel": 3})
    with pytest.raises(CheckFailed, match=r"out\[4\] was stored, and nothing belongs there"):
        check_kernel("holes", double, [double_kernel], [partly])


def test_elements_that_are_read_twice_are_found():
    given, expected = {"x": torch.ones(10), "out": unwritten(10)}, {"out": torch.full((10,), 2.0)}
    once = Trial(given, expected, {"double_kernel": 3}, read_once=("x",))
    check_kernel("once", double, [double_kernel], [once])
    overlapping = Trial(given, expected, {"pair_kernel": 3}, read_once=("x",))
    with pytest.raises(CheckFailed, match="elements of x are loaded more than once"):
        check_kernel("once", pairs, [pair_kernel], [overlapping])


@triton.jit
def pair_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    both = tl.load(x_ptr + i, mask=i < n) + tl.load(x_ptr + i // 2, mask=i < n)
    tl.store(out_ptr + i, both, mask=i < n)


def pairs(x, out):
    pair_kernel[(3,)](x, out, 10, BLOCK=4)
