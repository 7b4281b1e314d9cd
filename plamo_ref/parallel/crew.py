"""The processes of the other ranks: started, told, watched, ended.

A process is told through its standard input and says little through its standard output: that it is
there, and what ended it. Both close when a process dies, however it dies: so a rank that is gone is
known at once, and a rank whose driver is gone ends itself (worker.py).

Invariant: `send` writes whole orders, to all ranks in the same order; the first failure that is
somebody's own is the engine's failure, and stays; nothing of it is left after `close`.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from plamo_ref.parallel.rank import Order, encode

STOP_SECONDS = 5.0  # from the closed pipe to SIGKILL
START_SECONDS = 120.0  # for a process to import what it needs
LOST_SECONDS = 1.0  # for the one who is to blame to be heard, when another one has lost it


class Crew:
    """Ranks 1 to size - 1."""

    def __init__(self, size: int, on_failure: Callable[[], None]) -> None:
        """`on_failure` is called once, from a thread, when a rank has failed."""
        self.size, self._on_failure = size, on_failure
        self.home = tempfile.TemporaryDirectory(prefix="plamo-ref-")  # readable by its owner alone
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._ready = {rank: threading.Event() for rank in range(1, size)}
        self._closing = False
        self._lock = threading.Lock()
        self._failures: list[tuple[bool, str]] = []  # own before lost, in the order of time
        self._known = threading.Event()  # somebody failed by his own fault

    # --- its life ------------------------------------------------------------------------------

    def start(self, spec: Mapping[str, Any]) -> None:
        """Start all processes; each is told `spec` and its rank."""
        for rank in range(1, self.size):
            process = subprocess.Popen(
                [sys.executable, "-m", "plamo_ref.parallel.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_threads(self.size)},
                start_new_session=True,  # ctrl-C is for the driver
            )
            self._processes[rank] = process
            threading.Thread(
                target=self._listen, args=(rank, process), name=f"rank {rank}", daemon=True
            ).start()
            self._write(rank, json.dumps({**spec, "rank": rank}).encode() + b"\n")

    def wait_until_ready(self) -> None:
        """Until every process has come as far as it can alone, or one has failed."""
        end = time.monotonic() + START_SECONDS
        for rank, ready in self._ready.items():
            while not ready.wait(0.1) and self.failure is None:
                if time.monotonic() > end:
                    self.fail(rank, f"its process did not start in {START_SECONDS:.0f} s")

    @property
    def pids(self) -> dict[int, int]:
        """Process ids by rank."""
        return {rank: process.pid for rank, process in self._processes.items()}

    def close(self) -> None:
        """End all processes. May be called again, and after a failure."""
        self._closing = True
        for process in self._processes.values():
            _quietly(process.stdin)
        end = time.monotonic() + (STOP_SECONDS if self.failure is None else 0)
        for process in self._processes.values():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._leave()
        self.home.cleanup()  # last: what the ranks met by looks for its file to its end

    def _leave(self) -> None:
        """What this process has to do when the others have ended."""

    # --- orders --------------------------------------------------------------------------------

    def send(self, order: Order) -> None:
        """Tell all ranks. A rank that is gone is not told; who watches it says so."""
        line = encode(order)
        for rank in self._processes:
            self._write(rank, line)

    def _write(self, rank: int, line: bytes) -> None:
        pipe = self._processes[rank].stdin
        assert pipe is not None
        try:
            pipe.write(line)
            pipe.flush()
        except (OSError, ValueError):
            pass

    # --- who has failed ------------------------------------------------------------------------

    @property
    def failure(self) -> str | None:
        """Which rank failed, and why; None: none."""
        with self._lock:
            own = [why for lost, why in self._failures if not lost]
            return next(iter(own or [why for _, why in self._failures]), None)

    def fail(self, rank: int, why: str, *, lost: bool = False) -> None:
        """See `hand.Watch`."""
        with self._lock:
            first = not self._failures
            what = f"rank {rank} of {self.size} {'lost the others' if lost else 'failed'}: {why}"
            self._failures.append((lost, f"{what}; this engine is over: make another one"))
        if not lost:
            self._known.set()
        if first and not self._closing:
            self._on_failure()

    def wait(self, seconds: float) -> None:
        """See `hand.Watch`."""
        self._known.wait(seconds)

    def _listen(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        """What a process says, to its end."""
        last: dict[str, Any] = {}
        assert process.stdout is not None
        with process.stdout as said:
            for line in said:
                last = json.loads(line)
                if "ready" in last:
                    self._ready[rank].set()
        code = process.wait()
        if self._closing:
            return
        lost = bool(last.get("lost"))
        if lost:
            self._known.wait(LOST_SECONDS)
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        self.fail(rank, last.get("error") or f"its process ended ({ended})", lost=lost)


def _quietly(pipe: IO[bytes] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except OSError:  # what was not flushed is nobody's any more
        pass


def _threads(size: int) -> dict[str, str]:
    """A share of the cores for each rank, unless the user has decided how many threads there are.
    A process finds this package where its driver found it."""
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {"PYTHONPATH": os.pathsep.join(paths)}
    if "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 2) // size))
    return found
