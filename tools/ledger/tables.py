"""Recorded rows as small tables: one function for each kind of measurement.

Invariant: every record that the ledger shows has its function here, by the record's name.
"""

from collections.abc import Callable, Mapping, Sequence

from tools.ledger.ablation import ablation
from tools.ledger.exactness import deviations
from tools.ledger.joints import joints
from tools.ledger.narrow import narrow, replay_kernel, replayed
from tools.ledger.neighbours import (
    arena,
    fresh,
    hostile,
    hostile_before,
    interrupts,
    penalties,
    speculation,
    starvation,
)
from tools.ledger.peer import peer_tables
from tools.ledger.ranks import fused_sums, parallel, prefix_cost
from tools.ledger.records import Row
from tools.ledger.table import Column, Table, shape_of, table

BATCH = Column("batch", "batch", "{:,}")
STEP = Column("ms a step", "step_ms", "{:.2f}")
OF_FLOOR = Column("of the floor's speed", "percent_of_floor", "{:.0f} %")
TTFT = (
    Column("first token p50, ms", "ttft_ms.p50", "{:,.0f}"),
    Column("p99, ms", "ttft_ms.p99", "{:,.0f}"),
)
ITL = (
    Column("between tokens p50, ms", "itl_ms.p50", "{:,.0f}"),
    Column("p99, ms", "itl_ms.p99", "{:,.0f}"),
)
OUTPUT = Column("output tokens/s", "output_tokens_per_s", "{:,.0f}")


def _golden(rows: Sequence[Row]) -> list[Table]:
    shown = [{**r, "same": "yes" if r["greedy_ids_equal"] else "**no**"} for r in rows]
    return [
        table(
            "Golden cases",
            shown,
            Column("case", "case"),
            Column("largest difference of a logit, float32", "float32_max_abs", "{:.1e}"),
            Column("greedy ids equal", "same"),
        )
    ]


def _state_error(rows: Sequence[Row]) -> list[Table]:
    quarters = ((f"{n} quarter", i) for i, n in enumerate(("first", "second", "third", "last")))
    return [
        table(
            f"A bfloat16 state over {rows[0]['tokens']:,} tokens of the embedded model: log "
            "probabilities off by, in nats",
            rows,
            *(Column(name, f"mean_by_quarter.{i}", "{:.4f}") for name, i in quarters),
            Column("likeliest token the same", "same_token_on_top", "{:.2%}"),
        )
    ]


def _quantization_quality(rows: Sequence[Row]) -> list[Table]:
    return [
        table(
            f"The embedded model on {rows[0]['held_out_bytes']:,} bytes of held-out text",
            rows,
            Column("weights", "scheme"),
            Column("their bytes", "weight_bytes", "{:,.0f}"),
            Column("bits a byte", "bits_per_byte", "{:.4f}"),
            Column("more", "more_bits", "{:+.2%}"),
            Column("KL of the next token, nats", "kl_nats", "{:.4f}"),
            Column("likeliest token the same", "same_token_on_top", "{:.1%}"),
        )
    ]


def _decode(rows: Sequence[Row]) -> list[Table]:
    how = "" if rows[0].get("cuda_graphs", False) else ", no CUDA graphs"
    return [
        table(
            f"{shape_of(rows[0])}{how}",
            rows,
            BATCH,
            STEP,
            Column("floor, ms", "floor_ms", "{:.2f}"),
            OF_FLOOR,
            Column("the library's products alone, ms", "products_ms", "{:.2f}"),
            Column("tokens/s", "tokens_per_s", "{:,.0f}"),
        )
    ]


def _prefill(rows: Sequence[Row]) -> list[Table]:
    shown = [{**r, "prompts": _prompts(r), "ms": 1e3 * r.get("seconds", 0)} for r in rows]
    return [
        table(
            shape_of(rows[0]),
            shown,
            Column("prompt", "prompts"),
            Column("ms", "ms", "{:,.1f}"),
            Column("tokens/s", "tokens_per_s", "{:,.0f}"),
            OF_FLOOR,
        )
    ]


def _prompts(row: Row) -> str:
    several = f"{row['batch']} × " if row.get("batch", 1) > 1 else ""
    return f"{several}{row['prompt_len']:,}"


def _whole(rows: Sequence[Row]) -> list[Table]:
    seconds = Column("all of it, s", "seconds", "{:.2f}")
    return [table(shape_of(rows[0]), rows, seconds, OF_FLOOR, OUTPUT, *TTFT, *ITL)]


def _mixed(rows: Sequence[Row]) -> list[Table]:
    columns = (Column("scheduler", "scheduler"), Column("steps", "steps", "{:,}"))
    caption = f"A mixed workload, {shape_of(rows[0])}"
    return [table(caption, rows, *columns, OUTPUT, *TTFT, *ITL)]


def _startup(rows: Sequence[Row]) -> list[Table]:
    compiled = {True: "before the first request", False: "each when first launched"}
    shown = [{**r, "compiled": compiled[r["precompile"]]} for r in rows]
    return [
        table(
            shape_of(rows[0]),
            shown,
            Column("kernels' cache", "cache"),
            Column("kernels compiled", "compiled"),
            Column("import, s", "import_s", "{:.1f}"),
            Column("engine, s", "open_engine_s", "{:.1f}"),
            Column("from the process to the first token, s", "to_first_token_s", "{:.1f}"),
        )
    ]


def _kernels(rows: Sequence[Row]) -> list[Table]:
    """The best of each operation: where it has enough to do."""
    best: dict[tuple[str, str], Row] = {}
    for r in rows:
        key = r["shape"], r["operation"]
        if key not in best or best[key]["percent_of_floor"] < r["percent_of_floor"]:
            best[key] = r
    return [
        table(
            f"{shape} shape, the best case of each",
            [r for r in best.values() if r["shape"] == shape],
            Column("operation", "operation", "`{}`"),
            Column("case", "case"),
            Column("µs", "us", "{:,.1f}"),
            OF_FLOOR,
        )
        for shape in dict.fromkeys(r["shape"] for r in rows)
    ]


def _server(rows: Sequence[Row]) -> list[Table]:
    """What HTTP costs when every seat is taken, then what a client waits for at each load."""
    name = f"{shape_of(rows[0])} behind the server"
    costs = [r for r in rows if r["what"] == "overhead"]
    loads = [r for r in rows if r["what"] == "load"]
    crowds = [r for r in rows if r["what"] == "crowd"]
    longer = Column("longer than offline", "overhead", "{:+.1%}")
    rate = Column("requests/s", "requests_per_s", "{:g}")
    crowd = (Column("requests", "crowd"), Column("s", "seconds", "{:.1f}"))
    tables = (
        (costs, "all requests at once", (Column("answers", "way"), OUTPUT, longer)),
        (loads, "by load", (rate, *TTFT, *ITL, OUTPUT)),
        (crowds, "crowds", crowd),
    )
    return [table(f"{name}: {what}", r, *columns) for r, what, columns in tables if r]


def _throughput(rows: Sequence[Row]) -> list[Table]:
    return [
        table(
            f"{shape_of(rows[0])}: batching",
            rows,
            Column("requests", "requests"),
            Column("together, tokens/s", "output_tokens_per_s", "{:,.0f}"),
            Column("one after the other", "one_after_the_other_tokens_per_s", "{:,.0f}"),
            Column("gain", "gain_of_batching", "{:.1f}×"),
        )
    ]


def _scheduler(rows: Sequence[Row]) -> list[Table]:
    return [
        table(
            "The host's part of a step",
            rows,
            Column("running requests", "running", "{:,}"),
            Column("one decision, ms", "schedule_ms", "{:.3f}"),
            Column("building its batch, ms", "build_batch_ms", "{:.3f}"),
        )
    ]


def _host(rows: Sequence[Row]) -> list[Table]:
    return [
        table(
            f"Python alone, in a step of {rows[0]['batch']} requests: the model takes no time",
            rows,
            Column("through", "way"),
            Column("a step, ms", "step_ms", "{:.2f}"),
            Column("beyond the core's loop, µs a token", "beyond_core_us_per_token", "{:.1f}"),
        )
    ]


def _host_on_gpu(rows: Sequence[Row]) -> list[Table]:
    return [
        table(
            f"1B shape on a GPU, {rows[0]['batch']} requests",
            rows,
            Column("through", "way"),
            STEP,
            Column("beyond the core's loop", "beyond_core_percent", "{:+.1f}%"),
        )
    ]


def _pauses(rows: Sequence[Row]) -> list[Table]:
    shown = [{**r, "host": r["host_ms"]["p50"], "model": r["model_ms"]["p50"]} for r in rows]
    return [
        table(
            "Stops of 30 ms and more under the mixed workload",
            shown,
            Column("steps", "steps", "{:,}"),
            Column("collections in 1,000", "collections_per_1000_steps", "{:.0f}"),
            Column("the longest, ms", "longest_collection_ms", "{:.1f}"),
            Column("stops of the collector", "stops_of_the_collector"),
            Column("of the host", "stops_of_the_host"),
            Column("time taken by other processes", "taken_by_others"),
            Column("host p50, ms", "host", "{:.1f}"),
            Column("model p50, ms", "model", "{:.0f}"),
        )
    ]


def _load(rows: Sequence[Row]) -> list[Table]:
    shown = [{**r, "beyond": abs(r["peak_gb_over_what_stays"])} for r in rows]
    return [
        table(
            "Loading a checkpoint of the 1B shape",
            shown,
            Column("file, GB", "file_gb", "{:.2f}"),
            Column("s", "load_s", "{:.1f}"),
            Column("memory beyond what stays, GB", "beyond", "{:.2f}"),
        )
    ]


def _tokenizer(rows: Sequence[Row]) -> list[Table]:
    return [
        table(
            "The tokenizer, Japanese text",
            rows,
            Column("rows", "rows", "{:,}"),
            Column("encodes, MB/s", "encode_mb_per_s", "{:.1f}"),
            Column("decodes, MB/s", "decode_mb_per_s", "{:.0f}"),
            Column("streams, MB/s", "stream_mb_per_s", "{:.0f}"),
        )
    ]


def _masks(rows: Sequence[Row]) -> list[Table]:
    return [
        table(
            f"A grammar's mask for a token, {rows[0]['vocabulary']:,} rows",
            rows,
            Column("grammar", "grammar"),
            Column("start, ms", "start_ms", "{:.1f}"),
            Column("mask p50, µs", "median_us", "{:,.0f}"),
            Column("p99, µs", "p99_us", "{:,.0f}"),
            Column("logits adjusted, ms", "adjust_ms", "{:.1f}"),
        )
    ]


def _prefix(rows: Sequence[Row]) -> list[Table]:
    caching = {True: "on", False: "off"}
    shown = [{**r, "caching": caching[r["prefix_caching"]]} for r in rows]
    return [
        table(
            f"{shape_of(rows[0])}: prompts that begin alike",
            shown,
            Column("workload", "workload"),
            Column("prefix caching", "caching"),
            Column("memory", "memory"),
            Column("s", "seconds", "{:.2f}"),
            Column("the last call, s", "last_call_seconds", "{:.2f}"),
            Column("the second's first token, ms", "second_ttft_ms", "{:.1f}"),
            Column("a hit's first token, ms", "hit_ttft_ms", "{:.1f}"),
            Column("a fifth turn's, ms", "fifth_ttft_ms", "{:.1f}"),
            Column("its text alone, ms", "alone_ttft_ms", "{:.1f}"),
            Column("prompt tokens", "prompt_tokens", "{:,}"),
            Column("computed", "computed_tokens", "{:,}"),
            Column("the least possible", "least_tokens", "{:,}"),
        )
    ]


TABLES: Mapping[str, Callable[[Sequence[Row]], list[Table]]] = {
    "golden": _golden,
    "state_error": _state_error,
    "deviations": deviations,
    "quantization_quality": _quantization_quality,
    "gpu_peer": peer_tables,
    "gpu_decode_8b": _decode,
    "gpu_decode_8b_bf16": _decode,
    "gpu_decode_8b_fp8": _decode,
    "gpu_decode_8b_int4": _decode,
    "gpu_decode_8b_int8": _decode,
    "gpu_decode_8b_narrow": narrow,
    "gpu_decode_8b_replay": replayed,
    "gpu_state_replay_8b": replay_kernel,
    "gpu_joints_8b": joints,
    "gpu_decode_translate_int4": _decode,
    "gpu_decode_1b": _decode,
    "gpu_decode_1b_bf16": _decode,
    "gpu_prefill_8b": _prefill,
    "gpu_prefill_1b": _prefill,
    "gpu_prefill_8b_fp8": _prefill,
    "gpu_prefill_8b_int8": _prefill,
    "gpu_prefill_8b_int4": _prefill,
    "gpu_mixed_8b": _whole,
    "gpu_mixed_8b_bf16": _whole,
    "gpu_mixed_8b_fp8": _whole,
    "gpu_mixed_8b_fp8_bf16": _whole,
    "gpu_mixed_1b": _whole,
    "gpu_startup_8b": _startup,
    "gpu_startup_1b": _startup,
    "gpu_ablation_8b": ablation,
    "gpu_ablation_1b": ablation,
    "gpu_kernels": _kernels,
    "gpu_kernels_8b": _kernels,
    "gpu_server_8b": _server,
    "gpu_server_8b_fresh": fresh,
    "gpu_starvation_8b": starvation,
    "gpu_speculation_8b": speculation,
    "gpu_host_1b": _host_on_gpu,
    "throughput": _throughput,
    "mixed": _mixed,
    "scheduler": _scheduler,
    "host": _host,
    "pauses": _pauses,
    "gpu_pauses_8b": _pauses,
    "load_1b": _load,
    "tokenizer": _tokenizer,
    "server": _server,
    "masks": _masks,
    "interrupts": interrupts,
    "hostile": hostile,
    "hostile_before": hostile_before,
    "penalties": penalties,
    "gpu_penalties": penalties,
    "arena": arena,
    "prefix": _prefix,
    "gpu_prefix_8b": _prefix,
    "gpu_prefix_arena_8b": _prefix,
    "gpu_prefix_cost_8b": prefix_cost,
    "gpu_parallel_8b": parallel,
    "gpu_parallel_8b_fused": parallel,
    "gpu_parallel_8b_512": parallel,
    "gpu_fused_sums_8b": fused_sums,
}
