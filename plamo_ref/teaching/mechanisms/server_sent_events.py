"""Lesson 17: a stream of bytes, cut anywhere, becomes events.

Invariant: only whole events are decoded, so no cut of the network can harm a character.
Built in notebooks/17_serving_and_benchmarking.ipynb.
"""

from collections.abc import Iterable, Iterator


def events(pieces: Iterable[bytes]) -> Iterator[str]:
    """The data of each complete event (one `data: ` line each), as soon as it is complete."""
    buffer = b""
    for piece in pieces:
        buffer += piece
        while b"\n\n" in buffer:
            block, buffer = buffer.split(b"\n\n", 1)
            yield block.removeprefix(b"data: ").decode()
