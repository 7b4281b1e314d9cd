"""Launches of compiled kernels are counted as those of interpreted ones are.

Invariant tested: `kernel[grid]` is seen with its programs and goes on to what would have run; the
kernel is afterwards what it was. (Interpreted: tests/interpreted/test_interpreted_launches.py.)
"""

import pytest
import torch

from plamo_ref.teaching.kernel_checks import check_kernel
from plamo_ref.teaching.launches import LaunchError, counting, is_interpreted, lane

triton = pytest.importorskip("triton")


@triton.jit
def some_kernel(x_ptr, n):
    pass


def test_launches_of_a_compiled_kernel_are_counted(monkeypatch):
    made = []

    def run(*args, grid, warmup, **kwargs):
        made.append((args, grid, warmup, kwargs))

    some_kernel.run = run  # in place of a GPU
    x = torch.zeros(3)
    with counting(some_kernel) as seen:
        some_kernel[(3, 5)](x, n=7)
        some_kernel[lambda given: (given["n"],)](x, n=7)
        some_kernel.run(x, 7, grid=(9,), warmup=True)
    assert not is_interpreted(some_kernel)
    assert [launch.programs for launch in seen] == [15, 7]
    assert seen[0].arguments == {"x_ptr": x, "n": 7}
    assert [(warmup, kwargs) for _, _, warmup, kwargs in made[:2]] == [(False, {"n": 7})] * 2
    assert made[2][2], "a warm-up compiles and launches nothing"
    assert some_kernel.run is run


def test_a_block_that_raises_leaves_the_kernel_as_it_was():
    with pytest.raises(ZeroDivisionError), counting(some_kernel):
        _ = 1 / 0
    assert "run" not in vars(some_kernel) or some_kernel.run.__name__ == "run"


def test_a_function_without_a_decorator_is_refused():
    with pytest.raises(LaunchError, match="no kernel"), counting(len):
        pass


def test_a_check_without_trials_is_refused():
    with pytest.raises(ValueError, match="no trials"):
        check_kernel("nothing", len, [some_kernel], [])


def test_without_a_gpu_lessons_are_interpreted(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert lane() == torch.device("cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert lane() == torch.device("cuda")
