"""The ledger of README.md, made of recorded results: `python -m plamo_ref.bench.ledger README.md`.

Invariant: a number in the ledger is a number in notebooks/recorded/*.json, beside the machine and
the command that gave it.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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


def _decode(rows: list[Row]) -> list[str]:
    model, graphs = rows[0]["model"], rows[0].get("cuda_graphs", False)
    steps = ", ".join(f"{r['batch']}: **{r['step_ms']:.2f} ms**" for r in rows)
    how = "" if graphs else " without CUDA graphs"
    return [f"{model.upper()} shape, decode step{how} by batch: {steps}"]


def _prefill(rows: list[Row]) -> list[str]:
    speeds = ", ".join(f"{r['prompt_len']:,}: {r['tokens_per_s']:,.0f} tokens/s" for r in rows)
    return [f"{rows[0]['model'].upper()} shape, prefill by prompt length: {speeds}"]


def _whole(rows: list[Row]) -> list[str]:
    r = rows[0]
    return [f"{r['model'].upper()} shape, the whole mixed workload: {r['seconds']:.2f} s"]


LINES: Mapping[str, Callable[[list[Row]], list[str]]] = {
    "golden": _golden,
    "gpu_decode_8b": _decode,
    "gpu_decode_8b_plain": _decode,
    "gpu_decode_1b": _decode,
    "gpu_prefill_8b": _prefill,
    "gpu_mixed_8b": _whole,
    "throughput": _throughput,
    "mixed": _mixed,
    "scheduler": _scheduler,
    "load_1b": _load,
    "tokenizer": _tokenizer,
}


def ledger(folder: Path) -> str:
    """The table, in Markdown, of the recorded results of `folder` that belong in it."""
    lines = ["| measured | on | redo |", "|---|---|---|"]
    for name, sentences in LINES.items():
        path = folder / f"{name}.json"
        if path.exists():
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
