"""The flight recorder: every step of an engine as a line of JSON, written while it runs.

    LLM(record="run.jsonl"), plamo-ref serve --record run.jsonl, or: with recording(llm.core, file)

The first line of a run is its `Header`, every other one a `StepRecord` with a `Sighting`. A file
may hold several runs, one after the other. A line is one write, so what a killed engine leaves
behind is whole up to its last step.

Invariant: what is written is what the engine's own observers are told; an engine goes on when its
file cannot be written any more, and says so once.
"""

import fcntl
import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from plamo_ref.engine.config import EngineError
from plamo_ref.engine.record import StepRecord
from plamo_ref.recorder.sighting import Witness

if TYPE_CHECKING:
    from plamo_ref.engine.core import EngineCore

FORMAT, VERSION = "plamo-ref run", 1


class Header(msgspec.Struct, frozen=True):
    """What is the same for all steps of a run. Sizes are in tokens and in places."""

    format: str
    version: int
    scheduler: str
    budget: int  # tokens of a step
    seats: int
    block_size: int
    blocks: dict[str, int]  # that requests can have; their numbers begin at 1
    slots: int
    overlap: bool

    @classmethod
    def of(cls, core: "EngineCore") -> "Header":
        config, cache = core.config, core.cache
        return cls(
            FORMAT,
            VERSION,
            config.scheduler,
            config.step_tokens,
            core.queues.max_num_seqs,
            cache.block_size,
            {kind: pool.capacity for kind, pool in cache.blocks.items()},
            0 if cache.slots is None else cache.slots.capacity,
            config.resolve_overlap(core.runner.device),
        )


class Recorder:
    """Writes the steps of one engine to a file, until it is closed or the engine is gone."""

    def __init__(self, core: "EngineCore", path: str | Path) -> None:
        """Begins a run at the end of the file.

        Raises:
            EngineError: the file cannot be written, or another engine is writing it.
        """
        self._core, self._path = core, path
        try:
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise EngineError(f"record={str(path)!r}: {error.strerror}; name a new file") from None
        self._close = weakref.finalize(self, os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._close()
            message = "another engine is writing this file; each engine needs one of its own"
            raise EngineError(f"record={str(path)!r}: {message}") from None
        self._file, self._encoder = file, msgspec.json.Encoder()
        core.cache.witness = Witness(core).look
        core.observers.append(self.observe)
        self._write(Header.of(core))

    def observe(self, record: StepRecord, *_: object) -> None:
        """Called by the engine after each step."""
        self._write(record)

    def _write(self, line: Header | StepRecord) -> None:
        try:
            os.write(self._file, self._encoder.encode(line) + b"\n")
        except OSError as error:  # a disk is full; texts are worth more than their record
            self.close()
            warnings.warn(f"{self._path}: {error.strerror}; recording has ended", stacklevel=2)

    def close(self) -> None:
        """Write no more. The engine goes on."""
        self._core.cache.witness = None
        if self.observe in self._core.observers:
            self._core.observers.remove(self.observe)
        self._close()


@contextmanager
def recording(core: "EngineCore", path: str | Path) -> Iterator[None]:
    """Record what the engine does inside the `with`. Raises EngineError as `Recorder` does."""
    recorder = Recorder(core, path)
    try:
        yield
    finally:
        recorder.close()
