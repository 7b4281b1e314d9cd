"""The grammar processes as the engine sees them: started, spoken to, ended, heard.

Invariant: nothing here waits, except `poll` for as long as it was told to; and nothing of it
outlives `close`, which also happens when the object is collected or the interpreter exits.
"""

import json
import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from plamo_ref.grammar.frames import HEAD, Channel, Frame, Op
from plamo_ref.grammar.source import GuidedError
from plamo_ref.grammar.worker import WorkerLimits

FORK_SERVER = 0  # where a worker's key would stand
CLOSE_SECONDS = 1.0  # from the end of the conversation to SIGKILL


class GrammarProcesses:
    """A fork server and its workers, each with a key.

    Args:
        folder: of the tokenizer.
        vocab_size, stop_ids: as of `Vocabulary`.
        limits: of each worker.
        selector: watches their sockets; the caller's.

    Raises:
        GuidedError: this system cannot do it.
    """

    def __init__(
        self,
        folder: Path,
        vocab_size: int,
        stop_ids: Sequence[int],
        limits: WorkerLimits,
        selector: selectors.BaseSelector,
    ) -> None:
        if not hasattr(os, "fork"):
            raise GuidedError("guided decoding needs Linux or macOS: each grammar is forked off")
        self._selector = selector
        mine, theirs = socket.socketpair()
        self._control = Channel(mine)
        self._workers: dict[int, Channel] = {}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "plamo_ref.grammar.fork_server"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a signal to the engine's group is not for it
            )
        self._selector.register(mine, selectors.EVENT_READ, FORK_SERVER)
        spec = {
            "folder": str(folder),
            "vocab_size": vocab_size,
            "stop_ids": list(stop_ids),
            "limits": asdict(limits),
        }
        self._control.send(Frame(Op.SPEC, 0, json.dumps(spec).encode()))

    @property
    def pid(self) -> int:
        """Of the fork server."""
        return self._process.pid

    def start(self, key: int) -> None:
        """A new worker; what is sent to it waits until it runs.

        Raises:
            OSError: there can be no socket for it.
        """
        mine, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control.sock, [HEAD.pack(0, Op.START, key)], [theirs.fileno()])
        self._workers[key] = Channel(mine)
        self._selector.register(mine, selectors.EVENT_READ, key)

    def send(self, key: int, frame: Frame) -> None:
        channel = self._workers[key]
        channel.send(frame)
        self._watch(key, channel)

    def end(self, key: int) -> None:
        """Kill a worker and forget it."""
        self._forget(key)
        self._control.send(Frame(Op.END, key, b""))

    def poll(self, seconds: float) -> Iterator[tuple[int, Frame]]:
        """What has been said, and by whom, after waiting for at most so long for anything.

        A worker's last frame is EXIT. Of the fork server READY or FAILED come; FAILED is its last.
        """
        for ready, events in self._selector.select(seconds):
            key = ready.data
            channel = self._control if key == FORK_SERVER else self._workers.get(key)
            if channel is None:
                continue  # ended a moment ago
            if events & selectors.EVENT_WRITE:
                channel.flush()
                self._watch(key, channel)
            frames = list(channel.receive())
            if channel.ended:
                self._unregister(channel)
            for frame in frames:
                if frame.op == Op.EXIT:
                    yield from self._last_words(frame.subject)
                    yield frame.subject, frame
                elif key == FORK_SERVER or key in self._workers:
                    yield key, frame
            if key == FORK_SERVER and channel.ended:
                yield key, Frame(Op.FAILED, 0, b"")

    def close(self) -> None:
        """End everything."""
        for key in list(self._workers):
            self._forget(key)
        self._unregister(self._control)
        self._control.sock.close()  # the fork server sees it, and takes its workers with it
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:  # it still reads the tokenizer
            self._process.kill()
            self._process.wait()

    def _last_words(self, key: int) -> Iterator[tuple[int, Frame]]:
        channel = self._workers.get(key)
        if channel is not None:
            yield from ((key, frame) for frame in list(channel.receive()))
            self._forget(key)

    def _forget(self, key: int) -> None:
        channel = self._workers.pop(key, None)
        if channel is None:
            return
        self._unregister(channel)
        channel.sock.close()

    def _unregister(self, channel: Channel) -> None:
        if channel.sock in self._selector.get_map():
            self._selector.unregister(channel.sock)

    def _watch(self, key: int, channel: Channel) -> None:
        """Wake for writing only while something is unsent."""
        if channel.sock not in self._selector.get_map():
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.has_unsent else 0)
        self._selector.modify(channel.sock, events, key)
