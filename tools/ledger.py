"""The ledger of README.md, made of recorded results: `python -m tools.ledger README.md`.

Invariant: a number in the ledger is a number in notebooks/recorded/*.json, beside the machine and
the command that gave it.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plamo_ref.bench.shapes import SHAPES

START, END = "<!-- ledger: made by a command, see below -->", "<!-- end of the ledger -->"
Row = Mapping[str, Any]


def _throughput(rows: list[Row]) -> list[str]:
    r = rows[0]
    return [
        f"{r['requests']} requests together: **{r['output_tokens_per_s']:,.0f} tokens/s**, one "
        f"after the other {r['one_after_the_other_tokens_per_s']:,.0f}: "
        f"batching gains {r['gain_of_batching']:.1f}×"
    ]


def _mixed(rows: list[Row]) -> list[str]:
    return [
        f"mixed workload, {r['scheduler'].upper()}: {r['steps']:,} steps, "
        f"{r['output_tokens_per_s']:,.0f} output tokens/s, first token p50 "
        f"{r['ttft_ms']['p50'] / 1e3:.2f} s, between tokens p50 {r['itl_ms']['p50']:.0f} ms"
        for r in rows
    ]


def _scheduler(rows: list[Row]) -> list[str]:
    times = ", ".join(f"{r['running']}: {r['schedule_ms']:.3f} ms" for r in rows)
    return [f"one scheduling decision by number of running requests: {times}"]


def _load(rows: list[Row]) -> list[str]:
    r = rows[0]
    return [
        f"load a {r['file_gb']:.2f} GB checkpoint of the 1B shape: {r['load_s']:.1f} s, "
        f"{abs(r['peak_gb_over_what_stays']):.2f} GB of memory beyond what stays"
    ]


def _tokenizer(rows: list[Row]) -> list[str]:
    r = rows[0]
    return [
        f"tokenizer, {r['rows']:,} rows: encodes Japanese at {r['encode_mb_per_s']:.1f} MB/s, "
        f"decodes at {r['decode_mb_per_s']:.0f} MB/s"
    ]


def _golden(rows: list[Row]) -> list[str]:
    worst = max(r["float32_max_abs"] for r in rows)
    same = sum(r["greedy_ids_equal"] for r in rows)
    return [
        f"golden cases: largest difference of a logit {worst:.1e} in float32; greedy ids equal in "
        f"{same} of {len(rows)}"
    ]


def _shape(row: Row) -> str:
    """The model, and what is not the default about its memory."""
    kept = " with a bfloat16 state" if row.get("state_dtype") == "bfloat16" else ""
    return f"{row['model'].upper()} shape{kept}"


def _of_floor(row: Row) -> str:
    return f" ({row['percent_of_floor']:.0f} % of the floor)" if "percent_of_floor" in row else ""


def _decode(rows: list[Row]) -> list[str]:
    steps = ", ".join(f"{r['batch']}: **{r['step_ms']:.2f} ms**{_of_floor(r)}" for r in rows)
    how = "" if rows[0].get("cuda_graphs", False) else " without CUDA graphs"
    lines = [f"{_shape(rows[0])}, decode step{how} by batch: {steps}"]
    if "products_ms" in rows[0]:
        bare = ", ".join(f"{r['batch']}: {r['products_ms']:.2f} ms" for r in rows)
        lines.append(f"{_shape(rows[0])}, the library's products of such a step alone: {bare}")
    return lines


def _prefill(rows: list[Row]) -> list[str]:
    speeds = ", ".join(
        f"{_prompts(r)}: {r['tokens_per_s']:,.0f} tokens/s{_of_floor(r)}" for r in rows
    )
    return [f"{_shape(rows[0])}, prefill by prompt length: {speeds}"]


def _prompts(row: Row) -> str:
    several = f"{row['batch']} × " if row.get("batch", 1) > 1 else ""
    return f"{several}{row['prompt_len']:,}"


def _whole(rows: list[Row]) -> list[str]:
    r = rows[0]
    return [f"{_shape(r)}, the whole mixed workload: {r['seconds']:.2f} s{_of_floor(r)}"]


def _startup(rows: list[Row]) -> list[str]:
    def way(row: Row) -> str:
        how = "" if row["precompile"] else ", each compiled when first launched"
        return f"{row['cache']} kernels{how}: **{row['to_first_token_s']:.1f} s**"

    ways = "; ".join(way(row) for row in rows)
    return [f"{_shape(rows[0])}, from the start of the process to the first token, {ways}"]


def _ablation(rows: list[Row]) -> list[str]:
    """One sentence for all: what each optimisation is switched off for, a lesson tells."""
    full = {r["batch"]: r["step_ms"] for r in rows if r["off"] == "nothing"}
    names = dict.fromkeys(r["off"] for r in rows if r["off"] != "nothing")
    costs = ", ".join(
        name
        + " "
        + " / ".join(f"{r['buys_percent']:+.0f}" for r in rows if r["off"] == name)
        + " %"
        for name in names
    )
    return [
        f"{_shape(rows[0])}, decode step at batch {' / '.join(map(str, full))} with everything on: "
        f"{' / '.join(f'{ms:.2f}' for ms in full.values())} ms; with one thing off: {costs}"
    ]


def _kernels(rows: list[Row]) -> list[str]:
    lines = []
    for shape in dict.fromkeys(r["shape"] for r in rows):
        mine = [r for r in rows if r["shape"] == shape]
        best: dict[str, float] = {}
        for r in mine:
            best[r["operation"]] = max(best.get(r["operation"], 0.0), r["percent_of_floor"])
        shares = ", ".join(f"{name} {share:.0f} %" for name, share in best.items())
        lines.append(f"{shape} shape, kernels alone, best share of the floor: {shares}")
    return lines


def _state_error(rows: list[Row]) -> list[str]:
    r = rows[0]
    first, last = r["mean_by_quarter"][0], r["mean_by_quarter"][-1]
    return [
        f"a bfloat16 state over {r['tokens']:,} tokens of the embedded model: log probabilities "
        f"off by {first:.4f} nats in the first quarter, {last:.4f} in the last; the likeliest "
        f"token the same in {r['same_token_on_top']:.2%}"
    ]


def _server(rows: list[Row]) -> list[str]:
    """What HTTP costs when every seat is taken, then what a client waits for at each load."""
    model = rows[0]["model"]
    name = f"{model.upper()} shape" if model in SHAPES else f"{model} model"
    name += " behind the server"
    lines = []
    costs = [r for r in rows if r["what"] == "overhead"]
    if costs:
        others = ", ".join(f"{r['way']} {r['overhead']:+.1%}" for r in costs[1:])
        lines.append(
            f"{name}, all requests at once: {costs[0]['output_tokens_per_s']:,.0f} tokens/s "
            f"offline; through HTTP it takes longer by: {others}"
        )
    loads = [r for r in rows if r["what"] == "load"]
    if loads:
        waits = "; ".join(
            f"{r['requests_per_s']:g}/s: first token {_p50_p99(r['ttft_ms'])}, between tokens "
            f"{_p50_p99(r['itl_ms'])}"
            for r in loads[:: max(1, len(loads) // 2)]  # the lightest, one between, the heaviest
        )
        lines.append(f"{name}, p50 / p99 in ms by load: {waits}")
    return lines


def _masks(rows: list[Row]) -> list[str]:
    *grammars, batch = rows
    each = ", ".join(
        f"{r['grammar']} {r['median_us']:,.0f} / {r['p99_us']:,.0f} µs" for r in grammars
    )
    return [
        f"grammar mask of a token, {batch['vocabulary']:,} rows, median / p99: {each}; 32 rows "
        f"with a JSON schema adjusted in {batch['adjust_ms']:.1f} ms"
    ]


def _p50_p99(ms: Mapping[str, float]) -> str:
    return f"{ms['p50']:,.0f} / {ms['p99']:,.0f}"


LINES: Mapping[str, Callable[[list[Row]], list[str]]] = {
    "golden": _golden,
    "gpu_decode_8b": _decode,
    "gpu_decode_8b_bf16": _decode,
    "gpu_decode_1b": _decode,
    "gpu_decode_1b_bf16": _decode,
    "gpu_prefill_8b": _prefill,
    "gpu_prefill_1b": _prefill,
    "gpu_mixed_8b": _whole,
    "gpu_mixed_8b_bf16": _whole,
    "gpu_mixed_1b": _whole,
    "gpu_startup_8b": _startup,
    "gpu_startup_1b": _startup,
    "gpu_ablation_8b": _ablation,
    "gpu_ablation_1b": _ablation,
    "gpu_server_8b": _server,
    "gpu_kernels": _kernels,
    "gpu_kernels_8b": _kernels,
    "state_error": _state_error,
    "throughput": _throughput,
    "mixed": _mixed,
    "scheduler": _scheduler,
    "load_1b": _load,
    "tokenizer": _tokenizer,
    "server": _server,
    "masks": _masks,
}
CARD = re.compile(r"_(?:gb|gh|[abhl])\d{2,3}s?")  # at the end of a name: h100, h200, l40s


def files_of(name: str, folder: Path) -> list[Path]:
    """`name`.json, then the same measured on named cards: `name`_h100.json …"""
    cards = (p for p in folder.glob(f"{name}_*.json") if CARD.fullmatch(p.stem[len(name) :]))
    return [path for path in (folder / f"{name}.json", *sorted(cards)) if path.exists()]


def ledger(folder: Path) -> str:
    """The table, in Markdown, of the recorded results of `folder` that belong in it."""
    lines = ["| measured | on | redo |", "|---|---|---|"]
    for name, sentences in LINES.items():
        for path in files_of(name, folder):
            result = json.loads(path.read_text(encoding="utf-8"))
            data = result["data"] if isinstance(result["data"], list) else [result["data"]]
            where = f"{result['machine']}, torch {result['versions'].get('torch', 'not used')}"
            for sentence in sentences(data):
                lines.append(f"| {sentence} | {where}, {result['date']} | `{result['command']}` |")
    return "\n".join(lines)


def replace_ledger(text: str, table: str) -> str:
    """`text` with the table between the two marks.

    Raises:
        ValueError: the marks are missing.
    """
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no place for the ledger: expected the lines {START} and {END}")
    return pattern.sub(lambda _: f"{START}\n{table}\n{END}", text)


def main() -> None:
    """Rewrite the ledger of the file that the command line names."""
    readme = Path(sys.argv[1])
    table = ledger(readme.parent / "notebooks" / "recorded")
    readme.write_text(replace_ledger(readme.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main()
