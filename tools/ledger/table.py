"""A small table: columns that say which value of a row they show, and how.

Invariant: a number in a table is a number of a row, rounded; a column that no row has is left out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plamo_ref.bench.shapes import SHAPES
from tools.ledger.records import Row

NUMBER = re.compile(r"(\*\*)?[+-]?\d[\d,.]*(e-?\d+)?( ?(%|ms|×))?(\*\*)?|")


@dataclass(frozen=True)
class Column:
    """`key` is a path into a row: "ttft_ms.p50", "mean_by_quarter.0"; `form` a format string."""

    title: str
    key: str
    form: str = "{}"

    def of(self, row: Row) -> str | None:
        found = value(row, self.key)
        return None if found is None else self.form.format(found)


@dataclass(frozen=True)
class Table:
    """Cells as they are printed; the caption stands above."""

    caption: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """A column of numbers stands to the right."""
        columns = list(zip(*self.rows, strict=True))
        right = [all(NUMBER.fullmatch(cell) for cell in column) for column in columns]
        rule = tuple("---:" if number else "---" for number in right)
        lines = [f"| {' | '.join(cells)} |" for cells in (self.titles, rule, *self.rows)]
        return "\n".join([f"**{self.caption}**", "", *lines] if self.caption else lines)


def value(row: Row, path: str) -> Any:
    """What stands at the path, or None."""
    found: Any = row
    for key in path.split("."):
        if isinstance(found, Mapping):
            found = found.get(key)
        else:
            found = None if found is None else found[int(key)]
    return found


def table(caption: str, rows: Sequence[Row], *columns: Column) -> Table:
    """The rows in these columns, without columns that are empty."""
    there = [c for c in columns if any(c.of(row) is not None for row in rows)]
    cells = tuple(tuple(c.of(row) or "" for c in there) for row in rows)
    return Table(caption, tuple(c.title for c in there), cells)


def shape_of(row: Row) -> str:
    """The model, and what is not the default about its memory."""
    model = row["model"]
    name = f"{model.upper()} shape" if model in SHAPES else f"{model} model"
    name += f", {row['quantization']} weights" if row.get("quantization") else ""
    return name + (", bfloat16 state" if row.get("state_dtype") == "bfloat16" else "")


def percent(share: float) -> str:
    """A gain or a loss in whole percent."""
    return f"{round(share):+d} %" if round(share) else "0 %"
