"""What one thing buys, with a doubt where the runs scatter as far as that.

Invariant: a difference no larger than the scatter of either of its two steps is in brackets, in the
table and in the picture alike.
"""

from collections.abc import Sequence

from tools.ledger.records import Row
from tools.ledger.table import Column, Table, percent, shape_of, table


def bought(row: Row, rows: Sequence[Row]) -> str:
    """How much longer the step takes without it, in percent."""
    everything = next(r for r in rows if r["off"] == "nothing" and r["batch"] == row["batch"])
    scatter = max(row["spread_ms"], everything["spread_ms"])
    shown = percent(row["buys_percent"])
    return f"({shown})" if abs(row["buys_ms"]) <= scatter else shown


def ablation(rows: Sequence[Row]) -> list[Table]:
    """A row for each thing switched off; the first is the step with everything on."""
    batches = list(dict.fromkeys(r["batch"] for r in rows))
    shown: dict[str, dict[str, object]] = {}
    for r in rows:
        line = shown.setdefault(r["off"], {"off": r["off"], "instead": r["instead"]})
        whole = f"{r['step_ms']:.2f} ms"
        line[f"at {r['batch']}"] = whole if r["off"] == "nothing" else bought(r, rows)
    columns = [Column("off", "off"), Column("instead", "instead")]
    columns += [Column(f"batch {batch}", f"at {batch}") for batch in batches]
    return [table(f"{shape_of(rows[0])}: a decode step", list(shown.values()), *columns)]
