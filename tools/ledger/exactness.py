"""The table and the picture of what other implementations' ways do to a long text.

Invariant: as in tables.py and plots.py, by which they are listed.
"""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from plamo_ref.teaching.deviations import Departure, describe_departures, draw_departures
from tools.ledger.records import Row
from tools.ledger.table import Column, Table, table

FIELDS = ("name", "errors", "every", "begins", "first_other_token")


def deviations(rows: Sequence[Row]) -> list[Table]:
    return [
        table(
            f"A text of {rows[0]['tokens']:,} tokens, a window of {rows[0]['window']:,}",
            rows,
            Column("what is different", "name"),
            Column("first token with an error", "begins", "{:,}"),
            Column(
                "first behind which another token is the likeliest", "first_other_token", "{:,}"
            ),
            Column("largest error, relative", "largest_error", "{:.1f}"),
        )
    ]


def draw_deviations(data: Mapping[str, Sequence[Row]]) -> tuple[Figure, str]:
    rows = data["deviations"]
    found = [Departure(**{name: row[name] for name in FIELDS}) for row in rows]
    return draw_departures(found, rows[0]["window"]), describe_departures(found)
