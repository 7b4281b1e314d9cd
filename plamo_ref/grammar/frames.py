"""Messages between the engine and its grammar processes, over a socket, in plain bytes.

Invariant: a frame is a head of fixed size and a payload of the length that the head says; nothing
is pickled, nothing but the standard library is needed.

    engine → fork server   SPEC (once), START (with a socket), END
    fork server → engine   READY or FAILED (once), EXIT
    engine → worker        SOURCE (once), OPEN, ACCEPT, CLOSE
    worker → engine        STATE, one for SOURCE and for every OPEN and ACCEPT, in their order
"""

import socket
import struct
from array import array
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple, get_args

from plamo_ref.grammar.matcher import State
from plamo_ref.grammar.source import GrammarSource, Kind

HEAD = struct.Struct("<IBI")  # length of the payload, operation, subject
CHUNK = 1 << 16
COMPLETE, FINISHED, ERROR = 1, 2, 4  # flags of a state


class Op(IntEnum):
    """What a frame says."""

    SPEC = 1
    START = 2  # the subject is the worker's key, here and in END and EXIT
    END = 3
    READY = 4  # payload: a JSON list, the ids that are no text
    FAILED = 5
    EXIT = 6  # payload: the status, as text: minus the number of the signal, or an exit code
    SOURCE = 7
    OPEN = 8  # the subject is the guide, here and in the next three; payload: all its tokens
    ACCEPT = 9  # payload: its newest tokens
    CLOSE = 10
    STATE = 11


class Frame(NamedTuple):
    """One message."""

    op: Op
    subject: int
    payload: bytes

    def pack(self) -> bytes:
        return HEAD.pack(len(self.payload), self.op, self.subject) + self.payload


class Channel:
    """A socket for frames. Neither side ever waits in `send` or `receive`; `read` waits."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._out, self._in = bytearray(), bytearray()
        self.ended = False  # the other side is gone; what it said before is still to be had

    @property
    def has_unsent(self) -> bool:
        return bool(self._out)

    def send(self, frame: Frame) -> None:
        self._out += frame.pack()
        self.flush()

    def flush(self) -> None:
        """Hand over as much as the socket takes now."""
        try:
            while self._out:
                del self._out[: self.sock.send(self._out, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more: `receive` will say so
            self._out.clear()

    def feed(self, data: bytes) -> None:
        self._in += data

    def frames(self) -> Iterator[Frame]:
        """The whole frames that have come."""
        while (frame := self._next()) is not None:
            yield frame

    def receive(self) -> Iterator[Frame]:
        """What has come until now."""
        while not self.ended:
            try:
                data = self.sock.recv(CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.ended = not data
            self._in += data
        yield from self.frames()

    def read(self) -> Frame | None:
        """Wait for the next frame; None: the other side is gone."""
        while (frame := self._next()) is None:
            data = self.sock.recv(CHUNK)
            if not data:
                return None
            self._in += data
        return frame

    def _next(self) -> Frame | None:
        if len(self._in) < HEAD.size:
            return None
        length, op, subject = HEAD.unpack_from(self._in)
        end = HEAD.size + length
        if len(self._in) < end:
            return None
        payload = bytes(self._in[HEAD.size : end])
        del self._in[:end]
        return Frame(Op(op), subject, payload)


# --- payloads ------------------------------------------------------------------------------------


def pack_tokens(tokens: Sequence[int]) -> bytes:
    return array("I", tokens).tobytes()


def unpack_tokens(payload: bytes) -> list[int]:
    return array("I", payload).tolist()


def pack_source(source: GrammarSource) -> bytes:
    kinds = get_args(Kind)
    return bytes([kinds.index(source.kind)]) + source.text.encode("utf-8", "surrogatepass")


def unpack_source(payload: bytes) -> GrammarSource:
    return GrammarSource(get_args(Kind)[payload[0]], payload[1:].decode("utf-8", "surrogatepass"))


def pack_state(state: State) -> bytes:
    flags = COMPLETE * state.complete | FINISHED * state.finished
    if state.error is not None:
        return bytes([flags | ERROR]) + state.error.encode("utf-8", "replace")
    return bytes([flags]) + state.mask


def unpack_state(payload: bytes) -> State:
    flags, rest = payload[0], payload[1:]
    failed = bool(flags & ERROR)
    return State(
        b"" if failed else rest,
        bool(flags & COMPLETE),
        bool(flags & FINISHED),
        rest.decode("utf-8", "replace") if failed else None,
    )
