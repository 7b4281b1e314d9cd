"""What every measurement does: read its numbers, open an engine, show and keep the result.

Invariant: what is shown and what is kept are the same rows.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from plamo_ref.engine.config import EngineConfig
    from plamo_ref.engine.core import EngineCore

Row = dict[str, Any]
MOST_COLUMNS = 4


def numbers(text: str, least: int = 1) -> list[int]:
    """ "1,64" → [1, 64]."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise click.BadParameter(f"{text!r}: expected numbers of {least} or more, as in 1,64,256")
    return found


def more_than_one(context: click.Context, option: click.Parameter, value: int) -> int:
    """A step is the difference between one token and several."""
    if value < 2:
        raise click.BadParameter(f"{value}: a step needs 2 tokens or more")
    return value


def settings(options: dict[str, Any]) -> "EngineConfig":
    """The engine that the options ask for."""
    from plamo_ref.engine.config import EngineConfig

    chosen = {k: v for k, v in options.items() if k not in ("model", "shape", "json_file")}
    if chosen["scheduler"] == "v1":
        chosen["chunk_size"] = None
    return EngineConfig(**chosen)


def open_engine(options: dict[str, Any]) -> tuple["EngineCore", Callable[[str, list[Row]], None]]:
    """A core with the options, and what to call with its result."""
    from plamo_ref.bench.shapes import open_core

    core, _ = open_core(options["model"], options["shape"], settings(options))
    return core, lambda name, rows: finish(name, rows, options)


def finish(name: str, rows: Sequence[Row], options: dict[str, Any]) -> None:
    """Print a table; write the report."""
    result = keep(name, rows, options)
    show(name, result["data"], result["machine"])


def keep(name: str, rows: Sequence[Row], options: dict[str, Any]) -> dict[str, Any]:
    """Write the report, if it was asked for; rows say which options they were measured with."""
    from plamo_ref.bench.report import report, write

    said = {"model": options.get("shape") or options.get("model")}
    said |= {k: v for k, v in options.items() if k not in ("model", "shape", "json_file")}
    said = {k: v for k, v in said.items() if v not in (None, [], ())}
    result = report(name, [said | row for row in rows])
    if options["json_file"] is not None:
        write(result, options["json_file"])
    return result


def show(name: str, rows: Sequence[Row], machine: str) -> None:
    """A row is a column, for there are more facts than runs; many rows are a usual table."""
    from rich.console import Console
    from rich.table import Table

    title = f"{name} on {machine}"
    if len(rows) > MOST_COLUMNS:
        first = rows[0]
        keys = [key for key in first if any(row.get(key) != first[key] for row in rows)]
        same = ", ".join(f"{key} {_text(first[key])}" for key in first if key not in keys)
        table = Table(*keys, title=title, caption=same)
        for row in rows:
            table.add_row(*[_text(row.get(key)) for key in keys])
    else:
        table = Table("", *[f"run {i + 1}" for i in range(len(rows))], title=title)
        for key in rows[0]:
            table.add_row(key, *[_text(row.get(key)) for row in rows])
    Console().print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {number}" for key, number in value.items())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
