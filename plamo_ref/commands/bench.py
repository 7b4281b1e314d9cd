"""Measure the engine on this machine.

Invariant: every number printed was measured in this call; --json keeps it with what redoes it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plamo_ref.commands._bench_options import engine_options, result_option

if TYPE_CHECKING:
    from plamo_ref.engine.traces import Trace


@click.group()
def bench() -> None:
    """Measure the engine on this machine."""


@bench.command()
@engine_options
@click.option("--requests", default=32, show_default=True, help="Requests, all at once.")
@click.option("--prompt-len", default=64, show_default=True)
@click.option("--output-len", default=64, show_default=True)
@result_option
def throughput(requests: int, prompt_len: int, output_len: int, **options: Any) -> None:
    """Tokens per second of equal requests, together and one after the other."""
    from plamo_ref.bench.workloads import run, uniform

    core, finish = _open(options)
    one = uniform(1, prompt_len, output_len)
    run(core, one)  # the first run pays for what later ones find ready
    together = run(core, uniform(requests, prompt_len, output_len)).row()
    alone = [run(core, one) for _ in range(min(4, requests))]
    seconds = sum(result.seconds for result in alone) / len(alone)
    speed = output_len / seconds
    together |= {
        "one_after_the_other_tokens_per_s": round(speed, 1),
        "gain_of_batching": round(together["output_tokens_per_s"] / speed, 2),
    }
    finish("throughput", [{"requests": requests} | together])


@bench.command()
@engine_options
@click.option("--prompt-len", default=64, show_default=True)
@click.option("--output-len", default=64, show_default=True)
@click.option("--repeat", default=5, show_default=True, help="Requests, one after the other.")
@result_option
def latency(prompt_len: int, output_len: int, repeat: int, **options: Any) -> None:
    """Time to the first token and between tokens of a single request."""
    from plamo_ref.bench.workloads import percentiles, run, uniform

    core, finish = _open(options)
    jobs = uniform(1, prompt_len, output_len)
    run(core, jobs)
    runs = [run(core, jobs) for _ in range(repeat)]
    rows = {
        "prompt_len": prompt_len,
        "output_len": output_len,
        "ttft_ms": percentiles([r.ttft[0] for r in runs]),
        "itl_ms": percentiles([gap for r in runs for gap in r.itl]),
    }
    finish("latency", [rows])


@bench.command()
@engine_options
@click.option("--batches", default="1,32,128,256", show_default=True, help="Requests at a time.")
@click.option("--prompt-len", default=128, show_default=True)
@click.option("--output-len", default=256, show_default=True)
@result_option
def decode(batches: str, prompt_len: int, output_len: int, **options: Any) -> None:
    """Milliseconds of a decode step: what OUTPUT_LEN tokens take more than one does."""
    from plamo_ref.bench.workloads import run, uniform

    counts = _numbers(batches)
    core, finish = _open(options | {"max_num_seqs": max(counts)})
    rows = []
    for count in counts:
        short, long = uniform(count, prompt_len, 1), uniform(count, prompt_len, output_len)
        run(core, uniform(count, prompt_len, 8))  # compiles what is not yet compiled
        seconds = [run(core, trace).seconds for trace in (short, long)]
        step = (seconds[1] - seconds[0]) / (output_len - 1)
        speed = round(count / step, 1)
        rows.append({"batch": count, "step_ms": round(step * 1e3, 3), "tokens_per_s": speed})
    finish("decode", rows)


@bench.command()
@engine_options
@click.option("--lengths", default="2048,8192", show_default=True, help="Tokens of one prompt.")
@result_option
def prefill(lengths: str, **options: Any) -> None:
    """Prompt tokens per second of a single request."""
    from plamo_ref.bench.workloads import run, uniform

    core, finish = _open(options)
    rows = []
    for length in _numbers(lengths):
        run(core, uniform(1, length, 1))
        seconds = min(run(core, uniform(1, length, 1)).seconds for _ in range(3))
        rows.append({"prompt_len": length, "tokens_per_s": round(length / seconds, 1)})
    finish("prefill", rows)


@bench.command()
@engine_options
@click.option("--requests", default=256, show_default=True)
@click.option("--scale", default=1.0, show_default=True, help="Of all prompt and output lengths.")
@click.option("--both", is_flag=True, help="Run it with both schedulers.")
@result_option
def mixed(requests: int, scale: float, both: bool, **options: Any) -> None:
    """The mixed workload: prompts of 64-1024 tokens, outputs of 32-512, all at once."""
    from plamo_ref.engine.traces import Trace

    _race(Trace.mixed(requests, scale), both, options)


@bench.command()
@engine_options
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--both", is_flag=True, help="Run it with both schedulers.")
@result_option
def trace(file: Path, both: bool, **options: Any) -> None:
    """Run the requests of FILE.

    It is JSON: {"requests": [{"prompt_len": 7, "output_len": 5, "arrival": 0.5}, …]}, arrivals in
    seconds and in order.
    """
    from plamo_ref.engine.traces import Trace

    _race(Trace.read(file), both, options)


@bench.command()
@click.option("--running", default="1,64,256,1024", show_default=True, help="Numbers of requests.")
@result_option
def scheduler(running: str, **options: Any) -> None:
    """CPU time of a scheduling decision, without a model."""
    from plamo_ref.bench.scheduling import time_decisions

    counts = _numbers(running)
    _finish("scheduler", [time_decisions(count) for count in counts], options["json_file"])


def _numbers(text: str) -> list[int]:
    """ "1,64" → [1, 64]."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise click.BadParameter(f"{text!r}: expected positive numbers, as in 1,64,256")
    return numbers


def _race(trace: "Trace", both: bool, options: dict[str, Any]) -> None:
    """Run the same requests with one scheduler or with both."""
    from plamo_ref.bench.workloads import run
    from plamo_ref.engine.traces import Trace

    rows = []
    for name in ("v0", "v1") if both else (options["scheduler"],):
        core, finish = _open(options | {"scheduler": name})
        run(core, Trace(trace.requests[:1]))  # the first run pays for what later ones find ready
        rows.append({"scheduler": name} | run(core, trace).row())
    finish(click.get_current_context().info_name or "", rows)


def _open(options: dict[str, Any]) -> tuple[Any, Any]:
    """A core with the options, and what to call with its result."""
    from plamo_ref.bench.shapes import open_core
    from plamo_ref.engine.config import EngineConfig

    options = dict(options)
    model, shape, json_file = (options.pop(k) for k in ("model", "shape", "json_file"))
    if options["scheduler"] == "v1":
        options["chunk_size"] = None
    core, _ = open_core(model, shape, EngineConfig(**options))
    described = {"model": shape or model, **{k: v for k, v in options.items() if v is not None}}
    return core, lambda name, rows: _finish(name, [described | row for row in rows], json_file)


def _finish(name: str, rows: list[dict[str, Any]], json_file: Path | None) -> None:
    """Print a table; write the report."""
    from rich.console import Console
    from rich.table import Table

    from plamo_ref.bench.report import report, write

    result = report(name, rows)
    table = Table(
        "", *[f"run {i + 1}" for i in range(len(rows))], title=f"{name} on {result['machine']}"
    )
    for key in rows[0]:
        table.add_row(key, *[_text(row[key]) for row in rows])
    Console().print(table)
    if json_file is not None:
        write(result, json_file)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {number}" for key, number in value.items())
    return f"{value:,}" if isinstance(value, int | float) else str(value)
