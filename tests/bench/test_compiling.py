"""compiled(): launches written in a lesson, compiled for a GPU that is not there.

Invariant tested: it compiles what a launch would, and reports registers, spills and instructions;
what cannot be carried to the compiler's process, or is refused there, is named.
"""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

KERNEL = """
import torch, triton
import triton.language as tl
from plamo_ref.kernels.launch import silu
from plamo_ref.bench.kernels.machine_code import CompileError, compiled

BLOCK = 1024

@triton.jit
def twice(x):
    return 2 * x

@triton.jit
def gate_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < n, other=0.0).to(tl.float32)
    tl.store(out_ptr + i, twice(silu(x)), mask=i < n)
"""


# A notebook's cells have source that `inspect` finds, and their functions belong to __main__.
AS_CELLS = """
import linecache
linecache.cache["<lesson>"] = (len(source), None, source.splitlines(True), "<lesson>")
exec(compile(source, "<lesson>", "exec"), {"__name__": "__main__"})
"""


def run_here(code: str) -> None:
    exec(AS_CELLS, {"source": KERNEL + code})


def run_interpreting(code: str) -> str:
    """In a process of its own, as a lesson, where kernels are interpreted."""
    done = subprocess.run(
        [sys.executable, "-c", f"source = {KERNEL + code!r}\n{AS_CELLS}"],
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


LAUNCHES = """
def launches():
    for dtype, n in ((torch.bfloat16, 4096), (torch.float32, 4095)):
        x = torch.empty(n, dtype=dtype, device="meta")
        gate_kernel[(4,)](x, x, n, BLOCK=BLOCK)

for result in compiled(launches):
    print(result.kernel, result.constants, result.registers > 8, result.spills, result.shared)
    print(result.count("ld.global.v4") > 0, result.instructions > 20, "0 spills" in repr(result))
"""
THROUGH_A_LAUNCHER = """
from plamo_ref.kernels.choice import triton_table

def of_the_package():
    x = torch.empty(8, 64, dtype=torch.bfloat16, device="meta")
    triton_table().rms_norm(x, x[0], 1e-6)

for result in compiled(of_the_package, 80):
    print(result.kernel, result.ptx.count(".target sm_80"))
"""


@pytest.mark.parametrize("interpret", [False, True])
def test_a_launch_is_compiled_as_the_gpu_would_get_it(interpret, capsys):
    """The reader's own, and one of the package through its launcher, for an older GPU."""
    if interpret:
        out = run_interpreting(LAUNCHES + THROUGH_A_LAUNCHER)
    else:
        run_here(LAUNCHES)
        out = capsys.readouterr().out
    first, one, second, two, *rest = out.splitlines()
    assert first == second == "gate_kernel {'BLOCK': 1024} True 0 0"
    # 4096 is a multiple of 16, and elements are then loaded 16 bytes at a time; 4095 is none.
    assert (one, two) == ("True True True", "False True True")
    assert rest == (["rms_norm_kernel 1"] if interpret else [])


def test_what_cannot_be_compiled_is_said(capsys):
    run_here(
        """
data = torch.zeros(4)

def uses_data():
    gate_kernel[(1,)](data, data, 4, BLOCK=4)

def wrong_block():
    x = torch.empty(4, device="meta")
    gate_kernel[(1,)](x, x, 4, BLOCK=3)

for launches in (uses_data, wrong_block):
    try:
        compiled(launches)
    except CompileError as error:
        print(" ".join(str(error).split()))
"""
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first == "data is a Tensor: make it inside the function"
    assert second.startswith("wrong_block does not compile:")
    assert "power of 2" in second
