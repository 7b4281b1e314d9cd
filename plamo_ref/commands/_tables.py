"""The tables of `plamo-ref info`, and numbers as people read them.

Invariant: nothing is computed here but shares and units.
"""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table


def human_bytes(count: float | None) -> str:
    """1536 → "1.50 KiB"; None → "unknown"."""
    if count is None:
        return "unknown"
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while count >= 1024 and power < len(units) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.2f} {units[power]}" if power else f"{count:.0f} B"


def human_flops(count: float) -> str:
    """17.4e9 → "17.4 GFLOP"."""
    power = 0
    while count >= 1000 and power < 4:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {('', 'k', 'M', 'G', 'T')[power]}FLOP"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i and column else "left")
    return table


def parameter_table(facts: Mapping[str, Any]) -> Table:
    table = _table("Parameters", "part", "number", "share")
    total = facts["parameters"]
    for part, count in facts["parameters_by_part"].items():
        table.add_row(part, f"{count:,}", f"{count / total:.1%}")
    table.add_row("all", f"{total:,}", "", style="bold")
    return table


def memory_table(facts: Mapping[str, Any]) -> Table:
    stored, dtype = facts["stored"], facts["dtype"]
    table = _table("Memory", "what", "bytes", "")
    where = f"{stored['dtype']}, {stored['source']}" if stored["dtype"] else stored["source"]
    table.add_row("weights on disk", human_bytes(stored["bytes"]), where)
    table.add_row("weights served", human_bytes(facts["weight_bytes"]), dtype)
    for kind in ("full", "sliding_window"):
        group = facts["groups"][kind]
        per_token = human_bytes(group["kv_bytes_per_token"])
        table.add_row(f"KV of a token, {kind}", per_token, f"layers: {len(group['layers'])}")
    layers = len(facts["groups"]["mamba"]["layers"])
    state = human_bytes(facts["state_bytes"])
    table.add_row("state slot, mamba", state, f"layers: {layers}; {dtype}, SSM float32")
    return table


def length_table(facts: Mapping[str, Any]) -> Table:
    speed = facts["bandwidth"] / 1e9
    floor = f"decode floor at {speed:,.0f} GB/s"
    columns = ("length", "keeps", "prefill", "decode", floor)
    table = _table("One sequence: bytes kept, FLOPs a token", *columns)
    for cost in facts["costs"]:
        table.add_row(
            f"{cost['length']:,}",
            human_bytes(cost["request_bytes"]),
            human_flops(cost["prefill_flops_per_token"]),
            human_flops(cost["decode_flops_per_token"]),
            f"{cost['decode_floor_ms']:.3g} ms",
        )
    return table


def plan_table(plan: Mapping[str, Any]) -> Table:
    table = _table(f"Cache in {human_bytes(plan['memory'])}", "place", "number", "each", "together")
    rows = [(f"{kind} block", n, plan["block_bytes"][kind]) for kind, n in plan["blocks"].items()]
    for name, count, size in [*rows, ("state slot", plan["slots"], plan["slot_bytes"])]:
        table.add_row(name, f"{count:,}", human_bytes(size), human_bytes(count * size))
    table.add_row("budget", "", "", human_bytes(plan["budget"]), style="bold")
    return table
