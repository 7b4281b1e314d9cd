"""Every kernel at the published models' shapes, timed on a GPU against the machine's ceilings.

Invariant: only the kernels' own time is measured: a recorded graph, launched by nobody, over
copies of the arguments that take turns, so that no cache holds what is read.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from plamo_ref.batch import NarrowCache
from plamo_ref.bench.kernels.cases import model_cases
from plamo_ref.bench.kernels.ceilings import Ceilings, median_seconds
from plamo_ref.bench.kernels.parts import MODELS, Case
from plamo_ref.kernels.choice import triton_table
from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.table import Kernels

COPIES, COPIED_BYTES = 8, 1 << 28  # the arguments are copied so often, or as much


def require_gpu() -> torch.device:
    """The GPU to time kernels on.

    Raises:
        KernelError: there is none.
    """
    if not torch.cuda.is_available():
        raise KernelError("kernels are timed on a CUDA GPU, and there is none here")
    return torch.device("cuda")


def time_kernels(
    device: torch.device, models: Sequence[str], ceilings: Ceilings, only: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
    """A row for each case that says what it moves or computes; of some operations only."""
    table = triton_table(pdl=False)
    for shape in (shape for shape in MODELS if shape.name in models):
        for case in model_cases(device, torch.bfloat16, shape):
            if case.moved_bytes and (not only or case.operation in only):
                yield timed(case, shape.name, table, ceilings)


def timed(case: Case, shape: str, table: Kernels, ceilings: Ceilings) -> dict[str, Any]:
    moved, operations = case.moved_bytes, case.operations
    took = graph_seconds(case, table)
    floor = ceilings.floor(moved, operations)
    rate, unit = ceilings.rate(moved, operations, took)
    return {
        "shape": shape,
        "operation": case.operation,
        "case": case.name,
        "us": round(took * 1e6, 2),
        "floor_us": round(floor * 1e6, 2),
        "percent_of_floor": round(100 * floor / took, 1),
        "rate": round(rate, 1),
        "unit": unit,
    }


def graph_seconds(case: Case, table: Kernels) -> float:
    """Median time of one call within a graph of several."""
    times = min(COPIES, COPIED_BYTES // max(case.moved_bytes, 1))
    sets = [case.arguments] + [tuple(copied(a) for a in case.arguments) for _ in range(times)]
    call = getattr(table, case.operation)
    for arguments in sets:
        call(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for arguments in sets:
            call(*arguments)
    device = device_of(case.arguments[0])
    return median_seconds(graph.replay, device, seconds=0.02, at_least=30) / len(sets)


def copied(value: Any, dtype: torch.dtype | None = None) -> Any:
    """A deep copy; floating-point tensors in `dtype` if one is given, with the same strides."""
    if isinstance(value, Tensor):
        is_number = value.is_floating_point() and value.dtype.itemsize > 1  # e4m3 is a format
        kept = dtype if dtype is not None and is_number else value.dtype
        # A clone would be contiguous, and the kernels' strides would go untested.
        fresh = torch.empty_strided(value.shape, value.stride(), dtype=kept, device=value.device)
        return fresh.copy_(value)
    if isinstance(value, NarrowCache):
        dtype = None  # what it keeps is its own
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: copied(getattr(value, f.name), dtype) for f in dataclasses.fields(value)}
        if dtype is not None and "dtype" in fields:  # what its numbers stand for
            fields["dtype"] = dtype
        return dataclasses.replace(value, **fields)
    return value


def device_of(value: Any) -> torch.device:
    """Where the first tensor is that a value has."""
    if isinstance(value, Tensor):
        return value.device
    return device_of(getattr(value, dataclasses.fields(value)[0].name))


def line(row: dict[str, Any]) -> str:
    """A row as one line of a table of fixed width."""
    name = f"{row['shape']}: {row['operation']} {row['case']}"
    return (
        f"{name:56} {row['us']:9.1f} {row['floor_us']:9.1f} {row['percent_of_floor']:8.0f}%  "
        f"{row['rate']:,.0f} {row['unit']}"
    )


HEADER = f"{'case':56} {'µs':>9} {'floor µs':>9} {'of floor':>9}  rate"
