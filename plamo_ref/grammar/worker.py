"""One grammar in a process of its own: compiles it, and follows the texts that are made by it.

Invariant: whatever the grammar does to the library, it costs this process and no other. A compile
and a mask have each their seconds of processor time and the process its bytes; beyond them the
system ends it, wherever it is. It ends, too, when nobody holds the other end of its socket.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from plamo_ref.grammar.frames import Channel, Frame, Op, pack_state, unpack_source, unpack_tokens
from plamo_ref.grammar.matcher import Compiler, Progress, State
from plamo_ref.grammar.source import GuidedError


@dataclass(frozen=True)
class WorkerLimits:
    """What one grammar may cost."""

    compile_seconds: float = 5.0  # of processor time
    mask_seconds: float = 2.0  # the same, for one token
    memory_bytes: int = 512 << 20  # beyond what the process begins with


def serve(channel: Channel, compiler: Compiler, limits: WorkerLimits) -> None:
    """Compile what comes first, then answer until nobody asks any more."""
    _confine(limits.memory_bytes)
    first = channel.read()
    if first is None:
        return
    source = unpack_source(first.payload)
    try:
        with _seconds(limits.compile_seconds):
            grammar = compiler.compile(source)
    except GuidedError as error:
        _answer(channel, 0, State(b"", False, True, str(error)))
        return
    _answer(channel, 0, grammar.first)
    texts: dict[int, Progress] = {}
    while (frame := channel.read()) is not None:
        if frame.op == Op.CLOSE:
            texts.pop(frame.subject, None)
            continue
        if frame.op == Op.OPEN:
            texts[frame.subject] = grammar.begin()
        progress = texts[frame.subject]
        with _seconds(limits.compile_seconds if frame.op == Op.OPEN else limits.mask_seconds):
            progress.accept(unpack_tokens(frame.payload))
            state = progress.state()
        _answer(channel, frame.subject, state)


def _answer(channel: Channel, guide: int, state: State) -> None:
    channel.sock.sendall(Frame(Op.STATE, guide, pack_state(state)).pack())


def _confine(memory_bytes: int) -> None:
    import resource  # not on every system

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # elsewhere the limit is not kept, or counts shared libraries
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory_bytes, now + memory_bytes))


@contextmanager
def _seconds(limit: float) -> Iterator[None]:
    """So much processor time, then SIGPROF, which nobody handles: the end of the process."""
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def why(status: int, limits: WorkerLimits) -> str:
    """The end of a worker in words; `status` as `os.waitstatus_to_exitcode` gives it."""
    if status == -signal.SIGPROF:
        return (
            "too complex: more than "
            f"{limits.compile_seconds:g} s to compile or {limits.mask_seconds:g} s for a token"
        )
    if status == -signal.SIGABRT:
        mib = limits.memory_bytes >> 20
        return f"too complex: more than {mib} MiB, or the grammar library gave up"
    if status == -signal.SIGKILL:  # not by the library: perhaps the system was out of memory
        return "its process was killed"
    if status < 0:
        return f"the grammar library crashed ({signal.Signals(-status).name})"
    return f"too complex for the grammar library (its process ended with exit code {status})"


def quietly() -> None:
    """What the library writes when it dies is for nobody: the exit status tells."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
