"""The pre-flight of a workshop: which lessons will run here, and what to do about the rest.

Invariant: what can be tried is tried (a kernel in Triton's interpreter, a C++ program, a port, a
file); nothing is concluded from a name or a version alone.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from plamo_ref.commands._findings import Finding, memory_bytes, packages

NEEDED_MEMORY, NEEDED_DISK = 4 * 2**30, 2**30  # Lab, a kernel and a browser; build folders
TRY_SECONDS = 120
REFERENCE_SECONDS = 0.8  # `speed()` of the core on which the lessons were timed

_KERNEL = """
import torch
from plamo_ref.kernels.choice import TORCH, triton_table
x = torch.randn(3, 16), torch.randn(16), 1e-6
assert torch.allclose(triton_table().rms_norm(*x), TORCH.rms_norm(*x), atol=1e-5)
"""
_PROGRAM = "#include <vector>\nint main() { return std::vector<int>(3).size() == 3 ? 0 : 1; }\n"


@dataclass(frozen=True)
class Lesson:
    """What a lesson needs; `minutes` of a reader, `seconds` of one core for Run All."""

    number: str
    needs: tuple[str, ...]  # names of findings
    minutes: int
    seconds: int


# Minutes as on the lessons' cards, seconds as measured (tests compare both with the lessons).
LESSONS = (
    Lesson("00", ("lessons",), 40, 10),
    Lesson("01", ("lessons",), 62, 11),
    Lesson("02", ("lessons",), 65, 6),
    Lesson("03", ("lessons",), 66, 9),
    Lesson("04", ("lessons",), 56, 10),
    Lesson("04b", ("lessons",), 61, 7),
    Lesson("05", ("lessons",), 70, 7),
    Lesson("06", ("lessons",), 70, 9),
    Lesson("07", ("lessons",), 70, 12),
    Lesson("08", ("lessons",), 70, 20),
    Lesson("08b", ("lessons",), 123, 16),
    Lesson("09", ("lessons",), 77, 27),
    Lesson("10", ("lessons", "interpreter"), 125, 28),
    Lesson("11", ("lessons", "interpreter"), 153, 16),
    Lesson("12", ("lessons", "compiler"), 70, 21),
    Lesson("13", ("lessons",), 58, 8),
    Lesson("14", ("lessons", "port"), 75, 17),
    Lesson("15", ("lessons",), 74, 14),
    Lesson("16", ("lessons", "server"), 73, 21),
    Lesson("17", ("lessons", "server", "port"), 75, 21),
    Lesson("18", ("lessons",), 74, 18),
)


def findings() -> dict[str, Finding]:
    """What was tried, by name."""
    by_purpose = {finding.what.partition(":")[0]: finding for finding in packages()}
    return {
        "lessons": _short(by_purpose["packages for the lessons"]),
        "server": _short(by_purpose["packages for the HTTP server"]),
        "interpreter": interpreter(),
        "compiler": compiler(),
        "memory": memory(),
        "disk": disk(Path.cwd()),
        "port": port(),
        "fonts": fonts(),
    }


def _short(finding: Finding) -> Finding:
    return Finding(finding.ok, finding.what.partition(":")[0], finding.todo)


def interpreter() -> Finding:
    """A kernel of the package, in Triton's interpreter, against its plain twin."""
    what = "Triton kernels in the interpreter (lessons 10, 11)"
    if importlib.util.find_spec("triton") is None:
        return Finding(False, what, "Triton exists for Linux only: use Linux, WSL 2 or a container")
    error = _failure([sys.executable, "-c", _KERNEL], {"TRITON_INTERPRET": "1"})
    return Finding(not error, what, f"pip install -U triton numpy ({error})" if error else "")


def compiler() -> Finding:
    """A C++ program that is compiled and run, as torch.compile does on a CPU."""
    what = "C++ compiler (lesson 12)"
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        cure = "apt-get install g++, xcode-select --install, or conda install cxx-compiler"
        return Finding(False, what, cure)
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "x.cpp"), str(Path(folder, "x"))
        source.write_text(_PROGRAM, encoding="utf-8")
        error = _failure([found, str(source), "-o", program]) or _failure([program])
    name = f"{what}: {Path(found).name}"
    return Finding(not error, name, f"it does not work: {error}" if error else "")


def _failure(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    """The last line of what a command complained, or "" when it worked."""
    try:
        done = subprocess.run(
            command,
            env=dict(os.environ) | dict(environment or {}),
            capture_output=True,
            text=True,
            timeout=TRY_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return " ".join(str(error).split())
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def memory() -> Finding:
    nbytes = memory_bytes()
    if nbytes is None:
        return Finding(True, f"memory: unknown here; {NEEDED_MEMORY / 2**30:.0f} GiB are wanted")
    ok = nbytes >= NEEDED_MEMORY
    todo = "" if ok else f"{NEEDED_MEMORY / 2**30:.0f} GiB are wanted: one lesson at a time"
    return Finding(ok, f"memory: {nbytes / 2**30:.1f} GiB", todo)


def disk(folder: Path) -> Finding:
    """Room, and whether a notebook can be saved here."""
    free = shutil.disk_usage(folder).free
    what = f"disk: {free / 2**30:.0f} GiB free"
    if free < NEEDED_DISK:
        return Finding(False, what, f"free {NEEDED_DISK / 2**30:.0f} GiB")
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Finding(True, what)
    except OSError as error:
        return Finding(False, what, f"nothing can be written here: {error.strerror}")


def port() -> Finding:
    """JupyterLab, lesson 14's processes and lesson 17's server talk on this machine only."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            probe.listen()
            with socket.create_connection(probe.getsockname(), timeout=5):
                return Finding(True, "a server on 127.0.0.1 can be reached")
    except OSError as error:
        cure = f"{error}: allow loopback connections in the firewall or sandbox"
        return Finding(False, "a server on 127.0.0.1", cure)


def fonts() -> Finding:
    """Figures say Japanese words in Japanese only with a font for it."""
    what = "Japanese in figures"
    if importlib.util.find_spec("matplotlib") is None:
        return Finding(False, what, "needs the packages for the lessons")
    from plamo_ref.teaching.figures import japanese_font

    if font := japanese_font():
        return Finding(True, f"{what}: {font}")
    return Finding(False, what, "romanised without; apt-get install fonts-noto-cjk")


def speed() -> float:
    """Seconds of a core for a fixed piece of work like the lessons': many small tensors."""
    import torch

    x, start = torch.ones(64, 64), time.process_time()
    for _ in range(40_000):
        x = (x @ x).clamp(-1, 1)
    return time.process_time() - start


def report(found: Mapping[str, Finding], slower: float) -> Iterator[str]:
    """One line a lesson, then the minutes; `slower` is the factor to the measured seconds."""
    runs = {lesson: [n for n in lesson.needs if not found[n].ok] for lesson in LESSONS}
    for lesson, missing in runs.items():
        seconds = f"Run All about {max(1, round(lesson.seconds * slower))} s"
        yield str(
            Finding(
                not missing,
                f"lesson {lesson.number}, {lesson.minutes} minutes, {seconds}",
                f"see {', '.join(found[n].what for n in missing)}" if missing else "",
            )
        )
    ready = [lesson for lesson, missing in runs.items() if not missing]
    hours = sum(lesson.minutes for lesson in ready) / 60
    work = sum(lesson.seconds for lesson in ready) * slower / 60
    yield (
        f"{len(ready)} of {len(LESSONS)} lessons run here: about {hours:.0f} hours to read, "
        f"{work:.1f} minutes of computing"
    )
