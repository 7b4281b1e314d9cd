"""vLLM beside this engine on one card: the comparison's tables, and the one in README.md.

Invariant: every row was measured for both engines on the same card in the same calls, and says
where their settings differ.
"""

from collections.abc import Sequence

from tools.ledger.records import Record, Row
from tools.ledger.table import Column, Table, table, value

README_MARK = "ledger: peer"
UNITS = {"decode": "ms a step", "prefill": "ms", "mixed": "s", "start": "s"}
# Of each kind of load one row or two: README.md has room for little, and for the least favourable.
README_ROWS: Sequence[Row] = (
    *({"what": "decode", "state_dtype": "bfloat16", "batch": batch} for batch in (1, 32, 128, 256)),
    {"what": "prefill", "prompt_len": 128},
    {"what": "prefill", "prompts": 8},
    {"what": "prefill", "prompt_len": 8192, "state_dtype": "bfloat16"},
    {"what": "mixed", "state_dtype": "bfloat16"},
    {"what": "start"},
)


def name_of(row: Row) -> str:
    """What was done, in few words."""
    match row["what"]:
        case "decode":
            return f"decode, batch {row['batch']}"
        case "prefill":
            several = f"{row['prompts']} × " if row["prompts"] > 1 else ""
            return f"prefill, {several}{row['prompt_len']:,} tokens"
        case "mixed":
            return "256 mixed requests"
    return "cold start to the first token"


def gain(row: Row) -> float:
    """How many times as fast as the peer."""
    return float(row["peer"] / row["ours"])


def peer_tables(rows: Sequence[Row]) -> list[Table]:
    """A table for each shape, and one for the servers."""
    both = [row for row in rows if row["what"] != "server"]
    models = dict.fromkeys(row["model"] for row in both)
    tables = [
        _beside(f"{model.upper()} shape", [r for r in both if r["model"] == model], state=True)
        for model in models
    ]
    servers = [row for row in rows if row["what"] == "server"]
    return [*tables, *([_servers(servers)] if servers else [])]


def readme_table(rows: Sequence[Row]) -> Table:
    """The rows that README.md shows, of the 8B shape."""
    chosen = [
        next(r for r in rows if r["model"] == "8b" and wanted.items() <= r.items())
        for wanted in README_ROWS
    ]
    return _beside("", chosen, state=False)


def readme_words(record: Record) -> str:
    """What stands in README.md: the table, all rows in one sentence, where they come from."""
    gains = [gain(row) for row in record.rows if row["what"] != "server"]
    return (
        f"{readme_table(record.rows).markdown()}\n\n"
        f"All {len(gains)} comparisons of the ledger: {min(gains):.2f}× to {max(gains):.2f}×. "
        f"{record.origin}."
    )


def _beside(caption: str, rows: Sequence[Row], *, state: bool) -> Table:
    cells = []
    for row in rows:
        form = "{:,.1f}" if row["what"] in ("prefill", "start") else "{:,.2f}"
        kept = row["state_dtype"]
        theirs = row.get("peer_state_dtype", kept)
        cells.append(
            {
                "name": f"{name_of(row)}: {UNITS[row['what']]}",
                "state": kept if theirs == kept else f"{theirs}; {kept}",
                "peer": form.format(row["peer"]),
                "ours": form.format(row["ours"]),
                "gain": f"{gain(row):.2f}×",
            }
        )
    columns = [Column("", "name"), Column("state (vLLM; plamo-ref)", "state")]
    columns = columns if state else columns[:1]
    engines = (Column("vLLM", "peer"), Column("plamo-ref", "ours"), Column("times as fast", "gain"))
    return table(caption, cells, *columns, *engines)


def _servers(rows: Sequence[Row]) -> Table:
    ordered = sorted(rows, key=lambda r: (r["requests_per_s"], r["engine"] == "ours"))
    cells = [
        {
            "load": f"{row['requests_per_s']:g}/s",
            "engine": _engine(row),
            "ttft": _p50_p99(row, "ttft_ms", "{:,.0f}"),
            "tpot": _p50_p99(row, "tpot_ms", "{:,.1f}"),
            "output": f"{row['output_tokens_per_s']:,.0f}",
        }
        for row in ordered
    ]
    return table(
        "8B shape behind each engine's server",
        cells,
        Column("requests", "load"),
        Column("server", "engine"),
        Column("first token p50 / p99, ms", "ttft"),
        Column("each further token p50 / p99, ms", "tpot"),
        Column("output tokens/s", "output"),
    )


def _engine(row: Row) -> str:
    name = "plamo-ref" if row["engine"] == "ours" else "vLLM"
    return f"{name}, {row['setting']}" if row["setting"] else name


def _p50_p99(row: Row, key: str, form: str) -> str:
    return " / ".join(form.format(value(row, f"{key}.{p}")) for p in ("p50", "p99"))
