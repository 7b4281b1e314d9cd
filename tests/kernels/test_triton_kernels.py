"""The Triton kernels: which machine gets them, and their arithmetic in Triton's interpreter.

Invariant tested: every kernel is its torch twin in float32, and an engine that runs on them says
the same; where they cannot run, the choice says why.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plamo_ref.bench.kernels import check
from plamo_ref.bench.kernels.parts import Case
from plamo_ref.kernels import choice
from plamo_ref.kernels.choice import TORCH, select
from plamo_ref.kernels.errors import KernelError

pytest.importorskip("triton")
HERE = Path(__file__).parents[1]
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def test_kernels_are_their_twins_in_the_interpreter():
    """tests/interpreted, in a process of its own: the choice to interpret is made at import."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
    settings = {"TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1"}
    settings |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # the others take seconds to load
    done = subprocess.run(
        [*command, HERE / "interpreted"],
        env=os.environ | settings,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_auto_takes_triton_on_a_gpu_and_torch_elsewhere(dtype):
    assert select("auto", device=CUDA, dtype=dtype).name == "triton"
    assert select("triton", device=torch.device("cuda:1"), dtype=dtype).name == "triton"
    assert select("auto", device=CPU, dtype=dtype) is TORCH
    assert select("torch", device=CUDA, dtype=dtype) is TORCH


def test_float64_is_for_the_twins():
    assert select("auto", device=CUDA, dtype=torch.float64) is TORCH
    with pytest.raises(KernelError, match=r'kernels="triton": .*float64.*use "auto" or "torch"'):
        select("triton", device=CUDA, dtype=torch.float64)


def test_triton_without_a_gpu_is_refused():
    with pytest.raises(KernelError, match=r"need a CUDA GPU, and the device is 'cpu'"):
        select("triton", device=CPU)


def test_without_triton_auto_is_torch(monkeypatch):
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert select("auto", device=CUDA) is TORCH
    with pytest.raises(KernelError, match="Triton is not installed"):
        select("triton", device=CUDA)


def test_every_operation_has_a_kernel():
    kernels = choice.triton_table()
    for name in vars(TORCH):
        if name != "name":
            assert getattr(kernels, name) is not getattr(TORCH, name), name


def test_check_without_a_gpu_says_what_it_leaves_out_and_does_not_time():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "plamo_ref.bench.kernels.check", "--time"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--time needs a CUDA GPU" in done.stderr


def test_the_parts_of_a_check_make_every_comparison_once(monkeypatch, capsys):
    def few(device, dtype):
        for number in range(1, 8):
            yield Case(f"case {number}", "argmax", (torch.ones(1, number),))

    monkeypatch.setattr(check, "small_cases", few)
    monkeypatch.setattr(check, "triton_table", lambda: TORCH)
    made = {}
    for part in ((1, 1), (1, 3), (2, 3), (3, 3), (8, 8)):
        assert check.check_all(torch.device("cpu"), [], part=part)[0] == 0
        made[part] = re.findall(r"case \d", capsys.readouterr().out)
    assert len(made[1, 1]) == 7
    assert made[1, 3] == ["case 1", "case 4", "case 7"]
    assert sorted(made[1, 3] + made[2, 3] + made[3, 3]) == made[1, 1]
    assert made[8, 8] == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "")  # `main` sets it
    assert [check.main(["--part", part]) for part in ("2/3", "8/8")] == [0, 2]
    assert "nothing to compare" in capsys.readouterr().err
    for text in ("0/3", "4/3", "3", "a/b", "1/3/5", "-1/3"):
        with pytest.raises(SystemExit):
            check.main(["--part", text])
    assert "is no share as in 1/3" in capsys.readouterr().err
