"""A reader's kernels and the package's on the same tensors, timed on a GPU.

Invariant: both get the same arguments, on one machine, one after the other, by one clock
(gpu_clock.py); without a GPU there is what was recorded for the lesson's solutions, with its
origin, or nothing.

    python -m plamo_ref.teaching.attention_ramp.timing notebooks/recorded
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

import plamo_ref
from plamo_ref.errors import PlamoRefError
from plamo_ref.teaching.attention_ramp.paged_trials import BY_LAUNCHER
from plamo_ref.teaching.attention_ramp.shapes import Launcher, inputs
from plamo_ref.teaching.gpu_clock import gpu_microseconds
from plamo_ref.teaching.kernel_checks import check_kernel
from plamo_ref.teaching.recorded import RecordedError, recorded, write_recorded

NAME = "gpu_attention_ramp"
COMMAND = "python -m plamo_ref.teaching.attention_ramp.timing notebooks/recorded"
Row = dict[str, Any]


def side_by_side(launchers: Mapping[str, Launcher]) -> Iterator[Row]:
    """Each launcher's time, and where the package does the same, the package's.

    Raises:
        PlamoRefError: there is no GPU.
    """
    if not torch.cuda.is_available():
        raise PlamoRefError("kernels are timed on a CUDA GPU, and there is none here")
    given = inputs("cuda")
    for name, launcher in launchers.items():
        row: Row = {"kernel": name, "us": gpu_microseconds(partial(launcher, *given[name]))}
        if (theirs := _package(name, given[name])) is not None:
            row["package_us"] = gpu_microseconds(theirs)
        yield {key: round(v, 2) if isinstance(v, float) else v for key, v in row.items()}


def _package(name: str, given: tuple[Any, ...]) -> Callable[[], Any] | None:
    """What the package calls for the same result."""
    from plamo_ref.kernels.choice import triton_table

    table = triton_table()
    if name == "copy":
        return lambda: given[1].copy_(given[0])
    if name == "norm":
        return lambda: table.rms_norm(given[0], given[1], 1e-6)
    if name in ("decode", "split_decode"):
        q, keys, values, blocks, lens, window = given[:6]
        first = torch.zeros_like(lens)
        return lambda: table.paged_decode(q, keys, values, blocks, first, lens, window)
    return None


def times(launchers: Mapping[str, Launcher]) -> list[Row]:
    """The rows of this machine's GPU, else the recorded ones; prints where they are from."""
    if torch.cuda.is_available():
        rows = list(side_by_side(launchers))
        print(f"measured here, on {torch.cuda.get_device_name()}")
        return rows
    try:
        record = recorded(NAME)
    except RecordedError:
        print(f"Nothing is recorded yet. On a machine with a CUDA GPU: {COMMAND}")
        return []
    print(record.label)
    return list(record.data)


def check_ours(name: str) -> None:
    """The exercise's own check of the lesson's solution, as kernels were defined here.

    Raises:
        CheckFailed: it does not pass.
    """
    from plamo_ref.teaching.attention_ramp import kernels
    from plamo_ref.teaching.attention_ramp.pictures import RAMP

    launched = [getattr(kernels, kernel) for kernel in RAMP[name] if kernel != "walk"]
    trials, _ = BY_LAUNCHER[name]
    check_kernel(name, getattr(kernels, name), launched, trials(), atol=2e-4)


def main(folder: str) -> None:
    """Check the lesson's solutions, compiled; time them, and record that in `folder`."""
    from plamo_ref.teaching.attention_ramp import kernels

    for name in BY_LAUNCHER:
        check_ours(name)
    launchers = {name: getattr(kernels, name) for name in inputs("meta")}
    rows = []
    for row in side_by_side(launchers):
        print(row, flush=True)
        rows.append(row)
    write_recorded(
        NAME,
        rows,
        machine=torch.cuda.get_device_name(),
        versions={
            **{name: version(name) for name in ("torch", "triton")},
            "plamo_ref": plamo_ref.__version__,  # which need not be installed
        },
        command=COMMAND,
        date=datetime.now(UTC).date().isoformat(),
        folder=folder,
    )


if __name__ == "__main__":
    main(sys.argv[1])
