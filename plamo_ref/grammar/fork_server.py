"""The process that grammar processes are forked from: it has read the tokenizer, once.

Invariant: it never sees a grammar, so no grammar can hurt it; and it ends, with all its workers,
when the engine does, however that is: its standard input is one end of a socket pair whose other
end only the engine has.

`python -m plamo_ref.grammar.fork_server`; the first frame is a JSON object: folder, vocab_size,
stop_ids, limits. Forking is safe here: this process has one thread, no torch and no numpy.
"""

import gc
import json
import os
import select
import signal
import socket
import sys

from plamo_ref.errors import PlamoRefError
from plamo_ref.grammar.frames import CHUNK, Channel, Frame, Op
from plamo_ref.grammar.matcher import Compiler
from plamo_ref.grammar.vocabulary import Vocabulary
from plamo_ref.grammar.worker import WorkerLimits, quietly, serve
from plamo_ref.text.tokenizer import Plamo2Tokenizer

NICENESS = 10  # the engine and its front come first
LOOK_SECONDS = 1.0  # between two looks at whether the engine is still the parent
MAX_SOCKETS = 64  # in one message


class ForkServer:
    """Starts workers, ends them, tells how they ended."""

    def __init__(self, channel: Channel, compiler: Compiler, limits: WorkerLimits) -> None:
        self._channel, self._compiler, self._limits = channel, compiler, limits
        self._workers: dict[int, int] = {}  # process id → key
        self._parent = os.getppid()
        # A child's end wakes the loop: the signal's number is written where `select` looks.
        self._wake, woken = socket.socketpair()
        for sock in (self._wake, woken):
            sock.setblocking(False)
        self._woken = woken
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """Until the engine is gone."""
        sockets: list[int] = []
        while os.getppid() == self._parent and not self._channel.ended:
            ready, _, _ = select.select([self._channel.sock, self._wake], [], [], LOOK_SECONDS)
            if self._wake in ready:
                self._wake.recv(CHUNK)
            if self._channel.sock in ready:
                sockets += self._receive()
            for frame in self._channel.frames():
                if frame.op == Op.START:
                    self._fork(frame.subject, sockets.pop(0))
                elif frame.op == Op.END:
                    self._end(frame.subject)
            self._reap()
            self._channel.flush()
        signal.set_wakeup_fd(-1)
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)

    def _receive(self) -> list[int]:
        """Take what the engine says; returns the sockets that came with it."""
        try:
            data, sockets, _, _ = socket.recv_fds(self._channel.sock, CHUNK, MAX_SOCKETS)
        except ConnectionResetError:  # it went without having read everything
            data, sockets = b"", []
        self._channel.feed(data)
        self._channel.ended = not data
        return sockets

    def _fork(self, key: int, fd: int) -> None:
        pid = os.fork()
        if pid:
            os.close(fd)
            self._workers[pid] = key
            return
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for sock in (self._channel.sock, self._wake, self._woken):
                sock.close()
            quietly()
            with socket.socket(fileno=fd) as sock:
                serve(Channel(sock), self._compiler, self._limits)
            code = 0
        finally:
            os._exit(code)

    def _end(self, key: int) -> None:
        """Nobody but this process waits for its children, so the id is still the worker's."""
        for pid, its_key in self._workers.items():
            if its_key == key:
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            key, code = self._workers.pop(pid), os.waitstatus_to_exitcode(status)
            self._channel.send(Frame(Op.EXIT, key, str(code).encode()))


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the engine
    os.nice(NICENESS)
    channel = Channel(socket.socket(fileno=os.dup(0)))
    first = channel.read()
    if first is None:
        return 1
    spec = json.loads(first.payload)
    try:
        tokenizer = Plamo2Tokenizer.from_folder(spec["folder"])
        vocabulary = Vocabulary(tokenizer, spec["vocab_size"], spec["stop_ids"])
        compiler = Compiler(vocabulary)
    except (PlamoRefError, OSError) as error:
        channel.send(Frame(Op.FAILED, 0, str(error).encode()))
        return 1
    gc.freeze()  # a collection in a worker would copy every page that it looks at
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    channel.send(Frame(Op.READY, 0, json.dumps(vocabulary.special_token_ids).encode()))
    ForkServer(channel, compiler, WorkerLimits(**spec["limits"])).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
