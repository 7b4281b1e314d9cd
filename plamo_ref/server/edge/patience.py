"""How long the server waits for a client: for the head of a request, and for an answer to be read.

Invariant: a connection that is neither at work nor between two requests ends after a bounded time
and a bounded number of bytes. (The body of a request is bounded in `gate.py`; the pause between two
requests by uvicorn's keep-alive time.)

Without it, a few thousand connections that send a letter a minute (a "slow loris") cost a client
nothing and the server all its sockets. uvicorn has no such limit, so its protocol class gets one.
"""

import asyncio
from typing import Any

from plamo_ref.server.config import ServerConfig

MAX_HEAD_BYTES = 64 << 10
MAX_UNREAD_BODY = 64 << 20  # of a request that was answered early; it is read and thrown away


def impatient(protocol: Any, config: ServerConfig) -> Any:
    """uvicorn's `protocol` class, with limits to its patience."""

    class Impatient(protocol):
        _head_timer: asyncio.TimerHandle | None = None
        _read_timer: asyncio.TimerHandle | None = None
        _head_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._at_work():
                self._head_timer, self._head_bytes = _cancel(self._head_timer), 0
                return
            self._await_head()
            self._head_bytes += len(data)
            early = self.cycle is not None and self.cycle.more_body
            if self._head_bytes > (MAX_UNREAD_BODY if early else MAX_HEAD_BYTES):
                self.transport.abort()

        def pause_writing(self) -> None:
            """The client has a buffer full of text to read."""
            super().pause_writing()
            self._read_timer = self.loop.call_later(config.read_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._read_timer = _cancel(self._read_timer)

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_timer = _cancel(self._head_timer)
            self._read_timer = _cancel(self._read_timer)
            super().connection_lost(exc)

        def _at_work(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _await_head(self) -> None:
            if self._head_timer is None:
                self._head_timer = self.loop.call_later(config.head_seconds, self._give_up)

        def _give_up(self) -> None:
            if not self._at_work():
                self.transport.abort()

    return Impatient


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """What is left of the timer: nothing."""
    if timer is not None:
        timer.cancel()
    return None
