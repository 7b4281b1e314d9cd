"""A recorded run, read again: at each step who waits, who computes, and who holds which place.

Invariant: a `Moment` is what the engine's books said when that step was launched; a file that is of
another version, or damaged before its last line, is refused with the number of the line.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from plamo_ref.engine.record import StepRecord
from plamo_ref.errors import PlamoRefError
from plamo_ref.recorder.recorder import FORMAT, VERSION, Header
from plamo_ref.recorder.sighting import Kept, Sighting


class RunError(PlamoRefError):
    """A file that is no recorded run, or not one of this version."""


@dataclass(frozen=True)
class Moment:
    """One step: its record, the queues, and the place numbers of everybody."""

    record: StepRecord
    waiting: tuple[str, ...]
    running: tuple[str, ...]
    blocks: Mapping[str, Mapping[str, tuple[int, ...]]]  # kind → request → its blocks
    slots: Mapping[str, int]
    tree: tuple[Kept, ...]  # of the texts that prefix caching knows

    def owners(self, kind: str) -> dict[int, tuple[str, ...]]:
        """Block → the requests that have it: several, if they begin alike."""
        found: dict[int, tuple[str, ...]] = {}
        for request, blocks in self.blocks.get(kind, {}).items():
            for block in blocks:
                found[block] = (*found.get(block, ()), request)
        return found

    def kept(self, kind: str) -> set[int]:
        """Blocks of moments that are kept for later."""
        return {block for node in self.tree for block in node.blocks.get(kind, ())}


@dataclass(frozen=True)
class Run:
    """A header and its steps."""

    header: Header
    moments: tuple[Moment, ...]

    @property
    def requests(self) -> tuple[str, ...]:
        """All that computed anything, in the order in which they began."""
        shares = (share for moment in self.moments for share in moment.record.scheduled)
        return tuple(dict.fromkeys(share.request_id for share in shares))

    @property
    def records(self) -> tuple[StepRecord, ...]:
        return tuple(moment.record for moment in self.moments)


def read_runs(path: str | Path) -> list[Run]:
    """All runs of a file, in its order. A last line that is not whole is left out.

    Raises:
        RunError: there is no such file, or it is none of ours, or of another version.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; name a file that `record` wrote") from None
    found: list[tuple[Header, list[StepRecord]]] = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            if b'"format"' in line[:12]:
                found.append((_header(line), []))
            else:
                found[-1][1].append(msgspec.json.decode(line, type=StepRecord))
        except (msgspec.DecodeError, IndexError) as error:
            raise RunError(f"{path}, line {number}: not a step of a run: {error}") from None
        except RunError as error:
            raise RunError(f"{path}, line {number}: {error}") from None
    if not found:
        raise RunError(f"{path}: no recorded run; name a file that `record` wrote")
    return [Run(header, tuple(_moments(records))) for header, records in found]


def read_run(path: str | Path) -> Run:
    """The last run of a file. Raises RunError as `read_runs` does."""
    return read_runs(path)[-1]


def _header(line: bytes) -> Header:
    said = msgspec.json.decode(line)
    if said.get("format") != FORMAT or said.get("version") != VERSION:
        wanted, there = f"{FORMAT} {VERSION}", f"{said.get('format')} {said.get('version')}"
        raise RunError(f"{there}; this version reads {wanted}: record it again")
    return msgspec.convert(said, Header)


def _moments(records: Iterable[StepRecord]) -> Iterable[Moment]:
    """Each step with what was seen so far."""
    tables: dict[str, dict[str, tuple[int, tuple[int, ...]]]] = {}
    slots, tree = dict[str, int](), tuple[Kept, ...]()
    for record in records:
        seen = msgspec.convert(record.seen, Sighting)
        for name in seen.gone:
            tables.pop(name, None)
            slots.pop(name, None)
        slots |= seen.slots
        for name, changes in seen.tables.items():
            mine = tables.setdefault(name, {})
            for kind, grown in changes.items():
                first, blocks = mine.get(kind, (grown.first, ()))
                stay = blocks[grown.first - first : grown.end - first]
                mine[kind] = grown.first, stay + grown.added
        tree = tree if seen.tree is None else seen.tree
        held: dict[str, dict[str, tuple[int, ...]]] = {
            kind: {name: mine[kind][1] for name, mine in tables.items() if kind in mine}
            for kind in record.blocks_used
        }
        yield Moment(record, seen.waiting, seen.running, held, dict(slots), tree)
