"""From the start of a process to its first token, with and without compiled kernels on the disk.

Invariant: the clock starts before the interpreter does, and every process is a fresh one. A cold
cache is an empty folder: nothing that an earlier run compiled is found.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from plamo_ref.errors import PlamoRefError

CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")  # where compiled kernels are kept
PROMPT = 128


class StartupError(PlamoRefError, RuntimeError):
    """The process that was to be timed did not reach its first token."""


def time_startup(
    model: str, shape: str | None, engine: dict[str, Any], compare: bool
) -> list[dict[str, Any]]:
    """Rows: cold, then warm; with `compare` also cold with kernels compiled when launched.

    Raises:
        StartupError: a process failed; the message is its last line.
    """
    rows = []
    with TemporaryDirectory(prefix="plamo-ref-cold-") as folder:
        for cache in ("cold", "warm"):
            rows.append({"cache": cache} | _start(model, shape, engine, Path(folder)))
    if compare:
        plain = engine | {"precompile": False}
        with TemporaryDirectory(prefix="plamo-ref-cold-") as folder:
            rows.append({"cache": "cold"} | _start(model, shape, plain, Path(folder)))
    return rows


def _start(model: str, shape: str | None, engine: dict[str, Any], cache: Path) -> dict[str, Any]:
    """One process. Its own clock is the machine's, so its times count from our start of it."""
    places = {name: str(cache / name) for name in CACHES}
    wanted = json.dumps({"model": model, "shape": shape, "engine": engine, "started": time.time()})
    done = subprocess.run(
        [sys.executable, "-m", "plamo_ref.bench.startup"],
        input=wanted,
        env=os.environ | places,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StartupError(f"the process to be timed failed: {told}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    """What the fresh process does: reads what to open from stdin, prints when it got how far."""
    wanted = json.loads(sys.stdin.read())
    started = wanted["started"]
    import torch

    torch_there = time.time()
    from plamo_ref.bench.shapes import open_core
    from plamo_ref.bench.workloads import run, uniform
    from plamo_ref.engine.config import EngineConfig

    imported = time.time()
    core, _ = open_core(wanted["model"], wanted["shape"], EngineConfig(**wanted["engine"]))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    opened = time.time()
    one = uniform(1, PROMPT, 1)
    run(core, one)
    first = time.time()
    run(core, uniform(1, PROMPT, 3))
    decoded = time.time()
    times = {
        "import_torch_s": torch_there - started,
        "import_s": imported - started,
        "open_engine_s": opened - imported,
        "first_request_s": first - opened,
        "to_first_token_s": first - started,
        "first_decode_steps_s": decoded - first,
        "next_request_s": run(core, one).seconds,
    }
    kept = {"precompile": wanted["engine"].get("precompile", True)}
    print(json.dumps(kept | {name: round(value, 3) for name, value in times.items()}))


if __name__ == "__main__":
    main()
