"""The table of decode steps whose cache is in fewer bytes.

Invariant: as in tables.py, by which it is listed.
"""

from collections.abc import Sequence

from tools.ledger.records import Row
from tools.ledger.table import Column, Table, table

KEYS = {"auto": "bfloat16", "fp8": "fp8"}


def narrow(rows: Sequence[Row]) -> list[Table]:
    shown = [{**row, "keys": KEYS[row["kv_cache_dtype"]]} for row in rows]
    return [
        table(
            f"8B shape, {rows[0]['quantization']} weights, states and keys in fewer bytes",
            shown,
            Column("state", "state_dtype"),
            Column("rounding", "state_rounding"),
            Column("keys and values", "keys"),
            Column("batch", "batch"),
            Column("step, ms", "step_ms", "{:.2f}"),
            Column("of floor", "percent_of_floor", "{:.0f}%"),
            Column("tokens/s", "tokens_per_s", "{:,.0f}"),
        )
    ]
