"""recorded(): results measured on a named machine, for readers who do not have it.

Invariant: no recorded number reaches a reader without machine, versions, command and date.
Used by the GPU lessons; the files are notebooks/recorded/*.json.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from plamo_ref.errors import PlamoRefError

_REQUIRED = ("machine", "versions", "command", "date", "data")


class RecordedError(PlamoRefError):
    """A recorded result that is missing or does not say where it comes from."""


@dataclass(frozen=True)
class Recorded:
    """One file: `data` as it was measured, and its origin."""

    name: str
    machine: str  # "NVIDIA H200"
    versions: Mapping[str, str]
    command: str  # redoes the measurement
    date: str  # YYYY-MM-DD
    data: Any

    @property
    def label(self) -> str:
        """One line that must stand beside every figure drawn from `data`."""
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        return f"recorded on {self.machine}, {self.date} ({versions}); redo with: {self.command}"

    def __repr__(self) -> str:
        return f"Recorded({self.name}: {self.label})"

    def __getitem__(self, key: Any) -> Any:
        return self.data[key]


def recorded(name: str, folder: str | Path | None = None) -> Recorded:
    """Read `<folder>/<name>.json`; the folder defaults to notebooks/recorded.

    Raises:
        RecordedError: no such file, not JSON, or without its origin.
    """
    place = _folder() if folder is None else Path(folder)
    path = place / f"{name}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = ", ".join(sorted(p.stem for p in place.glob("*.json"))) or "none"
        raise RecordedError(f"{path}: no such recorded result; there are: {there}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordedError(f"{path}: not valid JSON: {error}") from None
    return _checked(name, path, content)


def write_recorded(
    name: str,
    data: Any,
    *,
    machine: str,
    versions: Mapping[str, str],
    command: str,
    date: str,
    folder: str | Path | None = None,
) -> Path:
    """Write a result so that `recorded` can read it; returns the file.

    Raises:
        RecordedError: something of its origin is missing. Nothing is left behind then.
    """
    place = _folder() if folder is None else Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"{name}.json"
    values = (machine, dict(versions), command, date, data)
    content = dict(zip(_REQUIRED, values, strict=True))
    _checked(name, path, content)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _checked(name: str, path: Path, content: Any) -> Recorded:
    if not isinstance(content, dict):
        raise RecordedError(f"{path}: expected a JSON object, found {type(content).__name__}")
    missing = [key for key in _REQUIRED if not content.get(key)]
    if missing:
        raise RecordedError(f"{path}: {', '.join(missing)} missing or empty; measure it again")
    if not isinstance(content["versions"], dict):
        raise RecordedError(f"{path}: versions must map a library to its version")
    try:
        date.fromisoformat(content["date"])
    except (TypeError, ValueError):
        raise RecordedError(f"{path}: date must be YYYY-MM-DD, not {content['date']!r}") from None
    return Recorded(name, **{key: content[key] for key in _REQUIRED})


def _folder() -> Path:
    """notebooks/recorded from a notebook (its own folder) or from the repository's root."""
    for base in (Path.cwd(), Path.cwd() / "notebooks"):
        if (base / "recorded").is_dir():
            return base / "recorded"
    return Path(__file__).parents[2] / "notebooks" / "recorded"
