"""A real server for the tests: the command `plamo-ref serve`, in a process of its own.

Invariant tested: none here. Traffic stays on 127.0.0.1, and nothing is left when a test ends.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from shallow import shallow

MODEL = "tiny"  # as clients name it
START_SECONDS = 60
SMALL = (
    # Tests compare texts of different batches, which only float64 promises to be equal.
    "--dtype",
    "float64",
    "--memory-bytes",
    str(64 << 20),
    "--max-num-seqs",
    "32",
    "--enable-prefix-caching",
)


@dataclass(frozen=True)
class RunningServer:
    """Where it is, and its process."""

    address: str
    process: "subprocess.Popen[str]"
    log: Path
    model: str  # what `LLM` takes for the same answers

    def client(self, **settings: object) -> httpx.Client:
        # Nothing is encrypted; to read all the world's certificates for it takes 20 ms a client.
        always = {"timeout": 60, "trust_env": False, "verify": False}
        return httpx.Client(base_url=self.address, **always | settings)

    def engine(self) -> psutil.Process:
        """The engine process: the server's only child."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def metrics(self) -> dict[str, float]:
        """`name{labels}` → value."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def wait_until(self, name: str, value: float, seconds: float = 20) -> None:
        """Wait for a metric to have a value; what it was in the end, if it never had."""
        end = time.monotonic() + seconds
        while (now := self.metrics().get(name)) != value:
            assert time.monotonic() < end, f"{name} is {now}, not {value}\n{self.log.read_text()}"
            time.sleep(0.05)

    def wait_until_idle(self) -> None:
        """Nothing is under way, and the engine holds no block and no slot."""
        self.wait_until("plamo_ref_requests_in_flight", 0)
        self.wait_until("plamo_ref_requests_running", 0)
        used = {n: v for n, v in self.metrics().items() if n.startswith("plamo_ref_cache_usage")}
        assert len(used) >= 2
        assert set(used.values()) == {0.0}, used


@contextlib.contextmanager
def running_server(
    folder: Path, *options: str, model: str | None = None, seconds: float = START_SECONDS
) -> Iterator[RunningServer]:
    """`plamo-ref serve` with a small model (see shallow.py) and a small cache, ready to answer."""
    log, model = folder / "server.log", model or shallow(folder)
    command = [sys.executable, "-m", "plamo_ref", "serve", "--model", model, "--port", "0"]
    command += ["--served-model-name", MODEL, "--chat-template", "plain"]  # as the embedded one
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, *SMALL, *options], stderr=stderr, text=True, env=environment
        )
    try:
        yield RunningServer(_address(process, log, seconds), process, log, model)
    finally:
        family = [process_or_none(process.pid)]
        family += family[0].children(recursive=True) if family[0] else []
        process.terminate()
        try:
            process.wait(seconds / 3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            _, alive = psutil.wait_procs([p for p in family if p is not None], timeout=10)
            assert alive == [], f"left behind: {alive}"


def process_or_none(pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid)
    return None


def _address(process: "subprocess.Popen[str]", log: Path, seconds: float) -> str:
    """Where the server says that it listens, once it does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = re.search(r"listening on (\S+)", log.read_text())
        if found:
            return found[1]
        assert process.poll() is None, f"the server ended: {log.read_text()}"
        time.sleep(0.02)
    raise AssertionError(f"no server after {seconds} s: {log.read_text()}")
