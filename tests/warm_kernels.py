"""Jupyter's kernels, each forked from a process that has imported already what lessons import.

Invariant: what a kernel runs, and what it is given (folder, environment, arguments), is what
`python -m ipykernel_launcher` would have run and been given; only imports are not done anew.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 60
PAUSE = 0.05  # s

# What Jupyter starts as a kernel: it has one forked, passes interrupts on, and lives as long as it.
ASK = """
import json, os, signal, socket, sys
wire = socket.socket(socket.AF_UNIX)
wire.connect(sys.argv[1])
asked = {"file": sys.argv[2], "folder": os.getcwd(), "environment": dict(os.environ)}
wire.sendall(json.dumps(asked).encode() + b"\\n")
signal.signal(signal.SIGINT, lambda *_: wire.send(b"!"))
wire.recv(1)
"""


@dataclass
class WarmKernels:
    """`state` is to be in the JUPYTER_PATH of who is to have them; `parent` forks them."""

    state: Path
    parent: psutil.Popen

    def offer(self) -> None:
        """From now on Jupyter's python3 is a forked kernel."""
        from ipykernel.kernelspec import get_kernel_dict

        socket_file, end = self.state / "socket", time.monotonic() + START_SECONDS
        while not socket_file.exists():
            if time.monotonic() > end:
                raise RuntimeError(f"no kernel could be forked after {START_SECONDS} s")
            time.sleep(PAUSE)
        argv = [sys.executable, "-I", "-S", "-c", ASK, str(socket_file), "{connection_file}"]
        file = self.state / "kernels" / "python3" / "kernel.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(get_kernel_dict() | {"argv": argv}), encoding="utf-8")

    def seconds(self) -> float:
        """Processor time of the kernels that live, with that of the imports they were spared."""
        kernels = self.parent.children()
        return sum(sum(p.cpu_times()[:2]) for p in [self.parent, *kernels]) if kernels else 0.0


@contextlib.contextmanager
def warm_kernels(state: Path) -> Iterator[WarmKernels]:
    state.mkdir()
    # What ipykernel would set; matplotlib reads it as it is imported.
    env = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    parent = psutil.Popen([sys.executable, __file__, str(state / "socket")], env=env)
    try:
        yield WarmKernels(state, parent)
    finally:
        parent.terminate()
        parent.wait()


def fork_for_all(address: str) -> None:
    """Import, then fork for everybody who asks, until terminated."""
    import torch  # noqa: F401
    from ipykernel import kernelapp  # noqa: F401

    import plamo_ref.teaching  # noqa: F401

    gc.freeze()
    kernels: dict[socket.socket, int] = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{address}.new")
        door.listen()
        os.rename(f"{address}.new", address)
        try:
            while True:
                _look(door, kernels)
        finally:
            for pid in kernels.values():
                os.kill(pid, signal.SIGKILL)


def _look(door: socket.socket, kernels: dict[socket.socket, int]) -> None:
    """Fork for who asks; pass an interrupt on; who has gone needs no kernel, and whose kernel has
    ended is told."""
    for ready in select.select([door, *kernels], [], [], PAUSE)[0]:
        if ready is not door:
            os.kill(kernels[ready], signal.SIGINT if ready.recv(1) else signal.SIGKILL)
            continue
        wire, _ = door.accept()
        with wire.makefile(encoding="utf-8") as lines:
            asked = json.loads(lines.readline())
        pid = os.fork()
        if pid == 0:
            for other in (door, wire, *kernels):
                other.close()
            _be_a_kernel(asked)
        kernels[wire] = pid
    for wire, pid in list(kernels.items()):
        if os.waitpid(pid, os.WNOHANG)[0]:
            wire.close()
            del kernels[wire]


def _be_a_kernel(asked: dict) -> None:
    import ipykernel_launcher
    from ipykernel import kernelapp

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = [ipykernel_launcher.__file__, "-f", asked["file"]]
    try:
        kernelapp.launch_new_instance()
    finally:
        os._exit(0)


if __name__ == "__main__":
    del sys.path[0]  # where this file is: no kernel sees it
    fork_for_all(sys.argv[1])
