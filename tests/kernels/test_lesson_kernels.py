"""The kernels that lessons ask their readers for, compiled for a GPU: our answers to them.

Invariant tested: an answer that passes in the interpreter is one that a GPU's compiler takes, at
the published shape; and what lesson 11 says of `tl.dot` is what that compiler does.

A lesson whose reader writes kernels keeps its answers in plamo_ref/teaching/<folder>/kernels.py,
and `launch_ours` in shapes.py beside it; they are found here.
"""

import ast
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from plamo_ref.bench.kernels.machine_code import Compiled, CompileError, compiled

pytest.importorskip("triton")

TEACHING = Path(__file__).parents[2] / "plamo_ref" / "teaching"
LESSONS = sorted(path.parent.name for path in TEACHING.glob("*/shapes.py"))
SHARED_MEMORY = 227 << 10  # bytes that one block of an H100 may have


def kernels_of(folder: str) -> set[str]:
    tree = ast.parse((TEACHING / folder / "kernels.py").read_text(encoding="utf-8"))
    names = (node.name for node in tree.body if isinstance(node, ast.FunctionDef))
    return {name for name in names if name.endswith("_kernel")}


def chunks(precision: str, tokens: int = 16) -> None:
    from plamo_ref.teaching.mamba_ramp.kernels import chunk_kernel

    x = torch.empty(16, 16, dtype=torch.float32, device="meta")
    sizes = {"Q": tokens, "BLOCK_P": 16, "BLOCK_N": 16, "PRECISION": precision}
    chunk_kernel[(1,)](x, x, x, x, x, x, x, 16, 16, 16, **sizes)


def each_precision() -> None:
    for precision in ("ieee", "tf32", "tf32x3"):
        chunks(precision)


def everything() -> None:
    for folder in LESSONS:
        importlib.import_module(f"plamo_ref.teaching.{folder}.shapes").launch_ours()
    each_precision()


def too_small() -> None:
    chunks("tf32", tokens=4)


@pytest.fixture(scope="module")
def of_this_file() -> Iterator[None]:
    """The compiler's process imports this file."""
    paths = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        yield


@pytest.fixture(scope="module")
def results(of_this_file: None) -> list[Compiled]:
    """Of `everything`, by one process: to start one takes longer than to compile a kernel."""
    return compiled(everything)


def test_a_kernel_belongs_to_one_lesson(results):
    names = [name for folder in LESSONS for name in kernels_of(folder)]
    assert len(names) == len(set(names))
    assert {result.kernel for result in results} == set(names)


@pytest.mark.parametrize("folder", LESSONS)
def test_every_answer_compiles_for_a_gpu(folder, results):
    own = [result for result in results[:-3] if result.kernel in kernels_of(folder)]
    assert {result.kernel for result in own} == kernels_of(folder)
    assert all(result.shared <= SHARED_MEMORY for result in own)
    if folder == "attention_ramp":
        assert not any(result.spills for result in own)
        with_products = {result.kernel for result in own if result.count("mma.sync")}
        assert with_products == {"decode_kernel", "split_kernel"}


def test_a_gpu_makes_tf32_of_products_and_refuses_small_ones(results):
    exact, rounded, thrice = (result.count(".tf32") for result in results[-3:])
    assert exact == 0 < rounded < thrice
    with pytest.raises(CompileError, match="K >="):
        compiled(too_small)
