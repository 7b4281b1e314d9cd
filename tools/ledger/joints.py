"""The tables of SwiGLU's product in tiles: in the engine, and by itself.

Invariant: as in tables.py, by which it is listed.
"""

from collections.abc import Sequence

from tools.ledger.records import Row
from tools.ledger.table import Column, Table, shape_of, table


def joints(rows: Sequence[Row]) -> list[Table]:
    return [
        table(
            f"{shape_of(rows[0])}: before, and with tiles also for prompts",
            [row for row in rows if "what" in row],
            Column("what", "what"),
            Column("before, ms", "before_ms", "{:,.2f}"),
            Column("after, ms", "after_ms", "{:,.2f}"),
            Column("more", "more", "{:+.1%}"),
        ),
        table(
            "SwiGLU's product by itself, one layer",
            [row for row in rows if "tokens" in row],
            Column("tokens", "tokens", "{:,}"),
            Column("the library and a pass, µs", "library_us", "{:,.1f}"),
            Column("the kernel of few tokens", "few_us", "{:,.1f}"),
            Column("tiles", "tiles_us", "{:,.1f}"),
            Column("rows of gate in a tile", "cut"),
        ),
    ]
