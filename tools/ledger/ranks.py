"""Recorded rows of several ranks, and of what prefix caching costs, as small tables.

Invariant: as in tables.py.
"""

from collections.abc import Sequence

from tools.ledger.records import Row
from tools.ledger.table import Column, Table, shape_of, table


def engine(row: Row) -> str:
    """Its ranks and stages, and what is unusual."""
    unusual = {"fused": "sums in kernels", "waits": "without overlap"}
    return ", ".join(
        [f"{row['ranks']} × {row['stages']}", *(w for key, w in unusual.items() if row.get(key))]
    )


def parallel(rows: Sequence[Row]) -> list[Table]:
    """Engines, then what one message costs."""
    engines = [{**r, "engine": engine(r)} for r in rows if "stages" in r and r["what"] != "open"]
    messages = [r for r in rows if "stages" not in r]
    seats = max(r["seats"] for r in rows if "seats" in r)
    tables = [
        table(
            f"8B shape, {seats} seats: ranks that share a stage's heads × stages",
            engines,
            Column("ranks × stages", "engine"),
            Column("what", "what"),
            Column("ms", "ms", "{:,.2f}"),
            Column("of one GPU's time", "of_one", "{:.2f}"),
            Column("messages a step", "messages"),
        )
    ]
    if messages:
        alone = "One sum over the ranks alone, outside of a recorded step"
        columns = (Column("ranks", "ranks"), Column("what", "what"), Column("ms", "ms", "{:.3f}"))
        tables.append(table(alone, messages, *columns))
    return tables


def fused_sums(rows: Sequence[Row]) -> list[Table]:
    """What a sum and its reader take together, by who adds."""
    return [
        table(
            "A sum over the ranks and the norm that reads it, in recorded steps",
            rows,
            Column("ranks", "ranks"),
            Column("rows", "rows"),
            Column("parts of a rank", "parts"),
            Column("NCCL adds, µs", "nccl_us", "{:.1f}"),
            Column("the reader adds, µs", "fused_us", "{:.1f}"),
        )
    ]


def prefix_cost(rows: Sequence[Row]) -> list[Table]:
    return [
        table(
            f"{shape_of(rows[0])}: what prefix caching costs where nothing is found",
            rows,
            Column("what", "what"),
            Column("off, ms", "off_ms", "{:,.2f}"),
            Column("on, ms", "on_ms", "{:,.2f}"),
            Column("more", "more", "{:+.1%}"),
            Column("products, off, TFLOP/s", "product_tflop_per_s_off", "{:.0f}"),
            Column("on", "product_tflop_per_s_on", "{:.0f}"),
        )
    ]
