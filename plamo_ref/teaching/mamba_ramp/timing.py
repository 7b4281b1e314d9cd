"""The reader's kernels beside the package's, on this machine's GPU.

Invariant: both get the same tensors and the same clock (gpu_clock.py).
Used by lesson 11 and benchmarks/mamba_ramp.py.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from plamo_ref.bench.kernels.timing import require_gpu
from plamo_ref.kernels.choice import triton_table
from plamo_ref.teaching.gpu_clock import gpu_microseconds
from plamo_ref.teaching.mamba_ramp import shapes

Call = Callable[..., Any]
CASES = (  # what is launched, for how many requests, of how many tokens each
    *(("conv_step", 1, 1), ("conv_step", 128, 1), ("update", 1, 1), ("update", 128, 1)),
    *(("scan", 8, 256), ("scan", 1, 8192)),
)


def beside(yours: Mapping[str, Call]) -> Iterator[dict[str, Any]]:
    """A row for each case: µs of your `conv_step`, `update` and `scan`, µs of the package's.

    Raises:
        KernelError: there is no GPU.
    """
    device, table = str(require_gpu()), triton_table()
    for name, requests, tokens in CASES:
        if name == "conv_step":
            arguments = shapes.conv_arguments(requests, device)
            theirs: tuple[Any, ...] = arguments[:-1]
            package = table.conv_update
        elif name == "update":
            arguments = shapes.update_arguments(requests, device)
            package, theirs = table.state_update, shapes.for_package(arguments)
        else:
            arguments = shapes.scan_arguments(requests, tokens, device)
            package, theirs = table.scan_prefill, shapes.for_package(arguments)
        row = {"kernel": name, "requests": requests, "tokens": tokens}
        row |= {"yours_us": _timed(yours[name], *arguments)}
        yield row | {"package_us": _timed(package, *theirs)}


def line(row: Mapping[str, Any]) -> str:
    """A row as the lesson prints it."""
    case = f"{row['kernel']:9} {row['requests']:3} × {row['tokens']:4} tokens"
    times = row["yours_us"] / row["package_us"]
    return f"{case}: yours {row['yours_us']:8.1f} µs, ours {row['package_us']:8.1f}, {times:.2f} ×"


def _timed(call: Call, *arguments: Any) -> float:
    return round(gpu_microseconds(lambda: call(*arguments)), 2)
