"""One life of the engine process, as its front sees it: start, talk, notice the end.

Invariant: nothing waits for a process that is gone: `messages` ends when the process does, after
what it still said. The sockets live in a private folder that goes with the object.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from plamo_ref.engine.config import EngineError
from plamo_ref.remote.messages import Codec, EngineSpec, Shutdown, ToEngine, ToFront

STOP_SECONDS = 5.0  # from Shutdown to SIGKILL
TERM_SECONDS = 1.0  # from SIGTERM to SIGKILL, of one that hangs
LAST_WORDS_SECONDS = 0.2  # for what a process said before its end to get here


class EngineProcess:
    """The engine process and the two sockets that lead to it. Make one with `start`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        context: zmq.asyncio.Context,
        sockets: tuple[zmq.asyncio.Socket, zmq.asyncio.Socket],
        home: tempfile.TemporaryDirectory[str],
    ) -> None:
        self._process, self._context, self._home = process, context, home
        self._to_engine, self._from_engine = sockets
        self._codec = Codec()
        self._exit = asyncio.ensure_future(process.wait())

    @classmethod
    async def start(
        cls, folder: Path, engine: Mapping[str, Any], heartbeat_seconds: float = 1.0
    ) -> "EngineProcess":
        """Start the process; it loads its model while the caller listens to `messages`.

        Raises:
            EngineError, OSError: there can be no socket, or no process.
        """
        home = tempfile.TemporaryDirectory(prefix="plamo-ref-")  # readable by its owner alone
        inbox, outbox = f"ipc://{home.name}/in", f"ipc://{home.name}/out"
        context = zmq.asyncio.Context()
        to_engine, from_engine = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        for socket, address in ((to_engine, inbox), (from_engine, outbox)):
            socket.set_hwm(0)
            socket.linger = 0
            try:
                socket.bind(address)
            except zmq.ZMQError as error:  # of a path, the system takes about 100 characters
                context.destroy()
                home.cleanup()
                message = f"no socket at {address}: {error.strerror}; TMPDIR says where they go"
                raise EngineError(message) from None
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "plamo_ref.remote.process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            env={**os.environ, **_threads()},
            start_new_session=True,  # a signal to the front's group is the front's to answer
        )
        assert process.stdin is not None
        spec = EngineSpec(
            folder=str(folder),
            engine=engine,
            inbox=inbox,
            outbox=outbox,
            heartbeat_seconds=heartbeat_seconds,
        )
        process.stdin.write(msgspec.json.encode(spec) + b"\n")  # and never closed: see process.py
        return cls(process, context, (to_engine, from_engine), home)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the number of the signal that ended it."""
        return self._process.returncode

    def send(self, message: ToEngine) -> None:
        """Say something. Never waits: what is under way is bounded by the number of requests."""
        self._to_engine.send(self._codec.encode(message))

    async def messages(self) -> AsyncIterator[ToFront]:
        """Everything that the engine says, until it is gone."""
        while True:
            coming = asyncio.ensure_future(self._from_engine.recv())  # a future already
            if not coming.done():
                await asyncio.wait({coming, self._exit}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():  # the process is gone; what it said may still be on its way
                await asyncio.wait({coming}, timeout=LAST_WORDS_SECONDS)
            if not coming.done():
                coming.cancel()
                return
            yield self._codec.for_front(await coming)

    async def kill(self) -> None:
        """End a process that hangs. Afterwards `messages` ends."""
        if self.exit_code is None:
            self._process.terminate()
            await asyncio.wait({self._exit}, timeout=TERM_SECONDS)
        if self.exit_code is None:  # stopped, say: SIGTERM waits until it goes on
            self._process.kill()
        await asyncio.wait({self._exit})

    async def close(self) -> None:
        """Ask it to stop, insist, clean up. Nothing of it is left afterwards."""
        if self.exit_code is None:
            self.send(Shutdown())
            await asyncio.wait({self._exit}, timeout=STOP_SECONDS)
        if self.exit_code is None:
            self._process.kill()
        await self._exit
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._context.destroy(linger=0)
        self._home.cleanup()


def _threads() -> dict[str, str]:
    """Leave one core to the front, unless the user has decided how many threads there are."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) - 1))}
