"""The tables of decode steps whose states are in fewer bytes, or are written less often.

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


def replayed(rows: Sequence[Row]) -> list[Table]:
    shown = [
        {**r, "state": "float32" if r["state_dtype"] == "auto" else r["state_dtype"]} for r in rows
    ]
    return [
        table(
            "8B shape, states that are written every k tokens",
            shown,
            Column("state", "state"),
            Column("k", "state_replay"),
            Column("batch", "batch"),
            Column("step, ms", "step_ms", "{:.2f}"),
            Column("floor, ms", "floor_ms", "{:.2f}"),
            Column("tokens/s", "tokens_per_s", "{:,.0f}"),
        )
    ]


def replay_kernel(rows: Sequence[Row]) -> list[Table]:
    """The best way to cut the kernel into programs, where several were tried."""
    best: dict[tuple[str, int, int], Row] = {}
    for row in rows:
        key = row["state"], row["batch"], row["k"]
        if key not in best or row["us"] < best[key]["us"]:
            best[key] = row
    return [
        table(
            "Its kernel alone, one layer",
            [row for row in best.values() if row["batch"] == 256],
            Column("state", "state"),
            Column("k", "k"),
            Column("µs", "us", "{:,.1f}"),
            Column("GB/s", "gb_per_s", "{:,}"),
            Column("rows of a program", "rows_of_P"),
            Column("warps", "warps"),
        )
    ]
