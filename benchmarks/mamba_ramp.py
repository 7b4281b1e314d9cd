"""Lesson 11's answers beside the package's kernels, timed on a GPU: what its reader can reach.

    python benchmarks/mamba_ramp.py notebooks/recorded/gpu_mamba_ramp.json

About a minute on an H100, most of it compiling. Before anything is timed the eight exercises are
tried as the lesson tries them, compiled; it stops at the first that is wrong. Rows are printed as
they are measured. Needs a CUDA GPU.
"""

import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import torch

from plamo_ref.bench.kernels.timing import require_gpu
from plamo_ref.teaching import CheckFailed, write_recorded
from plamo_ref.teaching.kernel_checks import check_kernel
from plamo_ref.teaching.mamba_ramp import kernels, trials
from plamo_ref.teaching.mamba_ramp.timing import beside, line


def _try(name: str) -> None:
    kernel = getattr(kernels, trials.EXERCISES[name].programs[0])
    launcher = trials.run(name, getattr(kernels, name))
    check_kernel(name, launcher, [kernel], trials.trials(name), mistakes=trials.mistakes(name))


def _tf32_has_three_digits() -> None:
    """What the interpreter imitates (plamo_ref/teaching/dot_rules.py) is what this GPU does."""
    with patch.object(kernels, "precision", lambda dtype: "tf32"):
        try:
            _try("chunk")
        except CheckFailed as refused:
            print(refused, flush=True)
            return
    raise SystemExit("chunk in tf32 was not refused: plamo_ref/teaching/dot_rules.py is wrong")


def main(target: Path) -> None:
    require_gpu()
    for name in trials.EXERCISES:
        _try(name)
    _tf32_has_three_digits()
    rows = []
    for row in beside({name: getattr(kernels, name) for name in ("conv_step", "update", "scan")}):
        rows.append(row)
        print(line(row), flush=True)
    write_recorded(
        target.stem,
        rows,
        machine=torch.cuda.get_device_name(),
        versions={name: version(name) for name in ("torch", "triton")},
        command=f"python benchmarks/mamba_ramp.py {target}",
        date=datetime.now(UTC).date().isoformat(),
        folder=target.parent,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
