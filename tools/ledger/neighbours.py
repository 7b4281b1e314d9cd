"""Tables of what one client costs the others: interrupts, hostile requests, dear wishes, memory.

Invariant: as in tables.py, by which these are listed.
"""

from collections.abc import Sequence

from tools.ledger.records import Row
from tools.ledger.table import Column, Table, table


def interrupts(rows: Sequence[Row]) -> list[Table]:
    return [
        table(
            "A call is broken off, four streams beside it go on",
            rows,
            Column("engine", "engine"),
            Column("interrupts", "interrupts"),
            Column("in so many functions", "functions"),
            Column("streams changed", "changed"),
        )
    ]


def hostile(rows: Sequence[Row], when: str = "") -> list[Table]:
    """The worst of each kind of request; the friendly one says what the machine does anyway."""
    kinds = {r["asked"].partition(":")[0]: [] for r in rows}  # type: dict[str, list[Row]]
    for r in rows:
        kinds[r["asked"].partition(":")[0]].append(r)
    shown = [
        {
            "kind": kind,
            "requests": len(found),
            "refused": sum(r["status"] in range(400, 500) for r in found),
            "unanswered": sum(r["status"] == 0 for r in found),
            "broken": sum(r["broken"] for r in found),
            "grown": max(r["front_mb"] for r in found),
            **{key: max(r[key] for r in found) for key in ("seconds", "gap_ms", "health_ms")},
        }
        for kind, found in kinds.items()
    ]
    return [
        table(
            f"Requests made to be expensive, one after another; the worst of each kind{when}",
            shown,
            Column("kind", "kind"),
            Column("requests", "requests"),
            Column("refused", "refused"),
            Column("not answered in 20 s", "unanswered"),
            Column("servers that then served nobody", "broken"),
            Column("longest answer, s", "seconds", "{:.2f}"),
            Column("longest pause of a neighbour's stream, ms", "gap_ms", "{:.0f}"),
            Column("slowest /health, ms", "health_ms", "{:.0f}"),
            Column("the front has grown by, MB", "grown", "{:.0f}"),
        )
    ]


def hostile_before(rows: Sequence[Row]) -> list[Table]:
    """The same asked of the server as it was; what took 20 s took that at least."""
    return hostile(rows, ", before bodies were bounded and grammars ran in processes of their own")


def penalties(rows: Sequence[Row]) -> list[Table]:
    size = f"{rows[0]['batch']} requests of {rows[0]['context']:,} tokens"
    return [
        table(
            f"What all of {size} wish for, a step",
            rows,
            Column("wish", "wish"),
            Column("ms", "step_ms", "{:.3f}"),
            Column("of it the host, ms", "host_ms", "{:.3f}"),
            Column("floor, µs", "floor_us", "{:,.0f}"),
            Column("first step, ms", "first_ms", "{:.1f}"),
            Column("the plain twin, ms", "plain_ms", "{:,.0f}"),
        )
    ]


def arena(rows: Sequence[Row]) -> list[Table]:
    """The same hours in both memories, one below the other."""
    hours = {r["hour"]: n for n, r in reversed(list(enumerate(rows)))}
    shown = sorted(rows, key=lambda r: (hours[r["hour"]], r["gib"]))
    return [
        table(
            "Hours of a day, on a simulated clock",
            shown,
            Column("hour", "hour"),
            Column("GiB", "gib"),
            Column("memory", "memory"),
            Column("s", "seconds", "{:.1f}"),
            Column("at the same time, at most", "most_running"),
            Column("preempted", "preempted"),
            Column("prompt tokens", "prompt_tokens", "{:,}"),
            Column("% of them found", "percent_hit", "{:.1f}"),
        )
    ]


def starvation(rows: Sequence[Row]) -> list[Table]:
    return [
        table(
            f"{rows[0]['decodes']} requests decode while a prompt of {rows[0]['prompt']:,} tokens "
            "arrives, 8B shape",
            rows,
            Column("a step is bound to", "mode"),
            Column("bound, ms", "bound_ms", "{:.1f}"),
            Column("between tokens p50, ms", "p50_ms", "{:.1f}"),
            Column("p99, ms", "p99_ms", "{:.1f}"),
            Column("of the quiet p99", "p99_over_quiet", "{:.2f}×"),
            Column("the prompt's first token, s", "first_token_s", "{:.1f}"),
        )
    ]


def speculation(rows: Sequence[Row]) -> list[Table]:
    """Equal ids are part of the benchmark: without them there is no record."""
    return [
        table(
            f"8B shape, drafts of {rows[0]['num_speculative_tokens']} tokens at the most",
            rows,
            Column("text", "text"),
            Column("batch", "batch"),
            Column("tokens/s without", "plain_tok_s", "{:,.0f}"),
            Column("with drafts", "drafts_tok_s", "{:,.0f}"),
            Column("ratio", "ratio", "{:.2f}×"),
            Column("steps without", "plain_steps", "{:.0f}"),
            Column("with", "steps", "{:.0f}"),
            Column("guesses", "drafted", "{:,.0f}"),
            Column("of them right", "accepted", "{:.0%}"),
        )
    ]


def fresh(rows: Sequence[Row]) -> list[Table]:
    return [
        table(
            "8B shape, a fresh server: steps recorded ahead, and what the first clients wait for",
            rows,
            Column("recorded ahead, s", "ahead_s"),
            Column("run", "run"),
            Column("process", "process"),
            Column("requests/s", "requests_per_s", "{:.0f}"),
            Column("first token p50, ms", "ttft_ms.p50", "{:,.0f}"),
            Column("p99, ms", "ttft_ms.p99", "{:,.0f}"),
            Column("between tokens p50, ms", "itl_ms.p50", "{:,.0f}"),
            Column("p99, ms", "itl_ms.p99", "{:,.0f}"),
        )
    ]
