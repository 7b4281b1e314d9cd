"""The process of a rank other than 0: it builds its part, then obeys until its driver is gone.

Invariant: it ends with its driver: its standard input is a pipe that closes when the driver dies,
however it dies, and a thread of its own reads it, so it ends even where it waits for a collective
that nobody will join. What ends it otherwise it says before: one line on standard output.

`python -m plamo_ref.parallel.worker` reads one line of JSON, then an order a line (rank.py).
"""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.build import build_runner
from plamo_ref.engine.config import EngineConfig
from plamo_ref.parallel.driver import build_rank, device_of, join
from plamo_ref.parallel.group import LostError
from plamo_ref.parallel.rank import decode
from plamo_ref.weights.checkpoint import Checkpoint
from plamo_ref.weights.loading import StoredWeights
from plamo_ref.weights.random import RandomWeights

GRACE_SECONDS = 2.0  # for what is under way, once the driver is gone


def main() -> int:
    """Returns the exit code: 1 after an error, which it has told."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the driver
    telling = _own_output()
    orders: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_read, args=(orders,), name="orders", daemon=True).start()
    try:
        _live(json.loads(orders.get()), orders, telling)
    except BaseException as error:
        lost = isinstance(error, LostError)
        why = str(error) if lost else f"{type(error).__name__}: {error}"
        _tell(telling, {"error": why, "lost": lost})
        return 1
    return 0


def _live(spec: dict[str, Any], orders: "SimpleQueue[bytes]", telling: IO[str]) -> None:
    """Build what the driver builds, and obey."""
    engine = EngineConfig(**spec["engine"])
    device, load = device_of(engine, spec["rank"]), _loader(spec["weights"])
    _tell(telling, {"ready": True})
    group = join(engine, Path(spec["meeting"]), spec["rank"], device)
    rank, _ = build_rank(load.config, engine, load, group, device, build_runner)
    while line := orders.get():
        rank.obey(decode(line))


def _loader(weights: dict[str, Any]) -> StoredWeights | RandomWeights:
    scheme = weights["quantization"]
    if "folder" in weights:
        return StoredWeights(Checkpoint.open(weights["folder"]), scheme)
    config = replace(Plamo2Config.from_dict(weights["config"]), quantization=scheme)
    return RandomWeights(config, weights["seed"])


def _read(orders: "SimpleQueue[bytes]") -> None:
    """Hand on what comes; at the end an empty line, and soon the end of the process."""
    for line in sys.stdin.buffer:
        orders.put(line)
    orders.put(b"")
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def _own_output() -> IO[str]:
    """Standard output for what is told; whatever a library prints goes where errors go."""
    telling = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return telling


def _tell(telling: IO[str], what: dict[str, Any]) -> None:
    try:
        telling.write(json.dumps(what) + "\n")
        telling.flush()
    except OSError:  # nobody listens any more
        pass


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # without a driver there is nobody to take leave of the group with
