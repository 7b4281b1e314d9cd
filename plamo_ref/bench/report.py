"""What every result says besides its numbers, and the file it is written to.

Invariant: a result can be redone from what it says: machine, versions, command.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy
import torch

import plamo_ref


def machine() -> str:
    """The processor, or the GPU if there is one, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass  # not Linux: the platform's word must do
    return f"{model}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def command() -> str:
    """The command line of this process, as one would type it in the project's folder.

    Where the result was written to (`--json FILE`) does not belong to what was measured.
    """
    program, words = Path(sys.argv[0]), sys.argv[1:]
    if "--json" in words:
        place = words.index("--json")
        words = words[:place] + words[place + 2 :]
    words = [word for word in words if not word.startswith("--json=")]
    if program.suffix == ".py" and program.parent.name == "benchmarks":
        return shlex.join(["python", f"benchmarks/{program.name}", *words])
    return shlex.join(["plamo-ref", *words])


def peak_bytes() -> dict[str, int]:
    """What this process asked of its GPU at most, cache and recorded steps included; else nothing.

    The driver's own context, some hundred MB, is not among it.
    """
    most = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return {"gpu_peak_bytes": most} if most else {}


def report(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A result: `rows` of measurements under the name of the benchmark."""
    return {
        "name": name,
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "numpy": numpy.__version__,
            "plamo_ref": plamo_ref.__version__,
        },
        "command": command(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **peak_bytes(),
        "data": rows,
    }


def write(result: dict[str, Any], path: Path) -> None:
    """Write a result as JSON, replacing the file in one move."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
