"""The recorded results that the ledger is made of: notebooks/recorded/*.json.

Invariant: what is read says on what, when and how it was measured.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plamo_ref.teaching.recorded import recorded

Row = Mapping[str, Any]
NAMED = (("torch", "torch"), ("vllm", "vLLM"))  # versions that a reader asks for
CARD = re.compile(r"_(?:gb|gh|[abhl])\d{2,3}s?")  # at the end of a name: h100, h200, l40s


@dataclass(frozen=True)
class Record:
    """One measurement: its rows, and one line that says where they come from."""

    machine: str
    rows: list[Row]
    origin: str
    conditions: Mapping[str, str] = field(default_factory=dict)  # what must be known to compare


def files_of(name: str, folder: Path) -> list[Path]:
    """`name`.json, then the same measured on named cards: `name`_h100.json …"""
    cards = (p for p in folder.glob(f"{name}_*.json") if CARD.fullmatch(p.stem[len(name) :]))
    return [path for path in (folder / f"{name}.json", *sorted(cards)) if path.exists()]


def read_record(path: Path) -> Record:
    """
    Raises:
        RecordedError: the file is missing, or does not say where it comes from.
    """
    result = recorded(path.stem, path.parent)
    versions = [
        f"{told} {result.versions[name]}" for name, told in NAMED if name in result.versions
    ]
    where = ", ".join((result.machine, *versions, result.date))
    rows = result.data if isinstance(result.data, list) else [result.data]
    conditions = json.loads(path.read_text(encoding="utf-8")).get("conditions", {})
    how = result.command if conditions else f"`{result.command}`"
    return Record(result.machine, rows, f"{where}: {how}", conditions)


def records_of(name: str, folder: Path) -> list[Record]:
    return [read_record(path) for path in files_of(name, folder)]
