"""What the server's benchmarks share: a server to measure, and a client that costs next to nothing.

Invariant: traffic stays on 127.0.0.1; the server that is measured is the command `plamo-ref serve`
in processes of its own, and it is gone when the `with` ends.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from asyncio import open_connection
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from plamo_ref.bench.shapes import SHAPES
from plamo_ref.intake.hub import find
from plamo_ref.text.tokenizer import Plamo2Tokenizer

NAME = "m"  # of the model, to clients
KANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわん"


@contextlib.contextmanager
def model_folder(model: str, shape: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """A model to serve, and the engine settings that it needs.

    For a shape: its config.json, and the embedded tokenizer with invented rows up to its size. Its
    weights are random, so that its text is noise, but each token costs what a real one does.
    """
    if shape is None:
        yield model, {}
        return
    config = SHAPES[shape]
    known = Plamo2Tokenizer.from_folder(find("tiny"))
    numbers = range(known.vocab_size, config.vocab_size)
    rows = [*known.rows, *((_word(i), -20.0, "NORMAL") for i in numbers)]
    with tempfile.TemporaryDirectory() as folder:
        Plamo2Tokenizer(rows, add_bos=known.add_bos, **known.special_tokens).save(folder)
        (Path(folder) / "config.json").write_text(json.dumps(config.to_dict()))
        yield folder, {"load_format": "dummy"}


def _word(number: int) -> str:
    """Four characters that are the number in the base of KANA."""
    digits = [number // len(KANA) ** place % len(KANA) for place in range(4)]
    return "".join(KANA[digit] for digit in digits)


@dataclass(frozen=True)
class Server:
    """Where it is, and its two processes."""

    address: str
    front_pid: int

    @property
    def engine_pid(self) -> int:
        """The front's only child."""
        (child,) = _children(self.front_pid)
        return child

    def cpu_seconds(self) -> tuple[float, float]:
        """CPU time of front and engine so far."""
        return _cpu_seconds(self.front_pid), _cpu_seconds(self.engine_pid)

    def numbers(self) -> dict[str, float]:
        """What the engine holds: shares of its pools, requests."""
        with urlopen(f"{self.address}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        held = ("cache_usage", "requests_in_flight", "requests_running")
        kept = tuple(f"plamo_ref_{name}" for name in held)
        return {name: float(value) for name, value in pairs if name.startswith(kept)}


def _children(pid: int) -> list[int]:
    """Processes that this one has started."""
    every = Path("/proc").glob("[0-9]*/stat")
    return [int(path.parent.name) for path in every if _stat(path)[1:2] == [str(pid)]]


def _cpu_seconds(pid: int) -> float:
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stat(path: Path) -> list[str]:
    """State, parent, … of a process, see proc(5); nothing if it has ended."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []


@contextlib.contextmanager
def running_server(
    model: str, engine: Mapping[str, Any], tree: Path | None = None
) -> Iterator[Server]:
    """Start `plamo-ref serve` with these engine settings, and wait until it is ready.

    `tree`: the folder of another version of the project, to run instead of this one."""
    command = [sys.executable, "-m", "plamo_ref", "serve", "--port", "0", "--model", model]
    command += ["--served-model-name", NAME, "--max-requests", "4096"]
    for name, value in engine.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    environment = dict(os.environ) if tree is None else {**os.environ, "PYTHONPATH": str(tree)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tree, env=environment
    ) as process:
        assert process.stderr is not None
        said = ""
        while (found := re.search(r"listening on (http://\S+)", said)) is None:
            line = process.stderr.readline()
            if not line:
                sys.exit(f"the server did not start: {said}")
            said += line
        # Nobody reads what else it says, and a full pipe would stop it.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield Server(found[1], process.pid)
        finally:
            family = [*_children(process.pid), process.pid]
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                for pid in family:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


@dataclass
class Visit:
    """One request, in seconds on one clock."""

    sent: float
    arrivals: list[float] = field(default_factory=list)  # of events with text
    done: float = 0.0
    ok: bool = False


def request_bytes(ids: list[int], max_tokens: int, stream: bool) -> bytes:
    body = {"model": NAME, "prompt": ids, "max_tokens": max_tokens, "temperature": 0}
    data = json.dumps({**body, "ignore_eos": True, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + data


async def visit(address: str, data: bytes) -> Visit:
    """Send a request, read its answer to the end."""
    place = urlsplit(address)
    seen = Visit(time.perf_counter())
    reader, writer = await open_connection(place.hostname, place.port, limit=1 << 20)
    writer.write(data)
    first, tail = b"", b""
    while part := await reader.read(1 << 16):
        now = time.perf_counter()
        first = first or part
        seen.arrivals += [now] * part.count(b'"text":')
        tail = (tail + part)[-64:]
    seen.done = time.perf_counter()
    whole = b"[DONE]" in tail or tail.rstrip().endswith(b"}")
    seen.ok = first.startswith(b"HTTP/1.1 200") and whole
    writer.close()
    return seen


async def hang_up(address: str, data: bytes, after_reading: bool) -> None:
    """Send a request and go."""
    place = urlsplit(address)
    reader, writer = await open_connection(place.hostname, place.port)
    writer.write(data)
    if after_reading:
        await reader.read(20)
    writer.transport.abort()
