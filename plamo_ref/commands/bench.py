"""Measure the engine on this machine.

Invariant: every number printed was measured in this call; --json keeps it with what redoes it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plamo_ref.commands._bench_options import bench_options, result_option
from plamo_ref.commands._bench_run import (
    finish,
    keep,
    more_than_one,
    numbers,
    open_engine,
    settings,
)

if TYPE_CHECKING:
    from plamo_ref.bench.simulator import Trace

POSITIVE = click.IntRange(1)
PRODUCTS = click.option(
    "--products/--no-products", default=True, help="Time the bare products as well."
)


def repeat_option(times: int) -> Any:
    return click.option(
        "--repeat", type=POSITIVE, default=times, show_default=True, help="Runs of each length."
    )


@click.group()
def bench() -> None:
    """Measure the engine on this machine."""


@bench.command()
@bench_options
@click.option(
    "--requests", type=POSITIVE, default=32, show_default=True, help="Requests, all at once."
)
@click.option("--prompt-len", default=64, show_default=True)
@click.option("--output-len", default=64, show_default=True)
@result_option
def throughput(requests: int, prompt_len: int, output_len: int, **options: Any) -> None:
    """Tokens per second of equal requests, together and one after the other."""
    from plamo_ref.bench.workloads import run, uniform

    core, done = open_engine(options)
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
    done("throughput", [{"requests": requests} | together])


@bench.command()
@bench_options
@click.option("--prompt-len", default=64, show_default=True)
@click.option("--output-len", default=64, show_default=True)
@click.option(
    "--repeat", type=POSITIVE, default=5, show_default=True, help="Requests, one after the other."
)
@result_option
def latency(prompt_len: int, output_len: int, repeat: int, **options: Any) -> None:
    """Time to the first token and between tokens of a single request."""
    from plamo_ref.bench.workloads import percentiles, run, uniform

    core, done = open_engine(options)
    jobs = uniform(1, prompt_len, output_len)
    run(core, jobs)
    runs = [run(core, jobs) for _ in range(repeat)]
    rows = {
        "prompt_len": prompt_len,
        "output_len": output_len,
        "ttft_ms": percentiles([r.ttft[0] for r in runs]),
        "itl_ms": percentiles([gap for r in runs for gap in r.itl]),
    }
    done("latency", [rows])


@bench.command()
@bench_options
@click.option("--batches", default="1,32,128,256", show_default=True, help="Requests at a time.")
@click.option("--prompt-len", default=128, show_default=True)
@click.option("--output-len", default=256, show_default=True, callback=more_than_one)
@repeat_option(5)
@PRODUCTS
@result_option
def decode(
    batches: str, prompt_len: int, output_len: int, repeat: int, products: bool, **options: Any
) -> None:
    """Milliseconds of a decode step: what OUTPUT_LEN tokens take more than one does."""
    from plamo_ref.bench.steps import Bench

    counts = numbers(batches)
    core, done = open_engine(options | {"max_num_seqs": max(counts)})
    engine = Bench.of(core, products)
    done("decode", [engine.decode(n, prompt_len, output_len, repeat) for n in counts])


@bench.command()
@bench_options
@click.option("--batches", default="1", show_default=True, help="Prompts at a time.")
@click.option("--lengths", default="2048,8192", show_default=True, help="Tokens of one prompt.")
@repeat_option(5)
@PRODUCTS
@result_option
def prefill(batches: str, lengths: str, repeat: int, products: bool, **options: Any) -> None:
    """Prompt tokens per second, up to the first token of each prompt."""
    from plamo_ref.bench.steps import Bench

    counts, sizes = numbers(batches), numbers(lengths)
    core, done = open_engine(options | {"max_num_seqs": max(*counts, options["max_num_seqs"] or 1)})
    engine = Bench.of(core, products)
    done("prefill", [engine.prefill(n, length, repeat) for n in counts for length in sizes])


@bench.command()
@bench_options
@click.option("--requests", type=POSITIVE, default=256, show_default=True)
@click.option("--scale", default=1.0, show_default=True, help="Of all prompt and output lengths.")
@click.option("--both", is_flag=True, help="Run it with both schedulers.")
@repeat_option(1)
@result_option
def mixed(requests: int, scale: float, both: bool, repeat: int, **options: Any) -> None:
    """The mixed workload: prompts of 64-1024 tokens, outputs of 32-512, all at once."""
    from plamo_ref.bench.simulator import Trace

    _race(Trace.mixed(requests, scale), both, repeat, options)


@bench.command()
@bench_options
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--both", is_flag=True, help="Run it with both schedulers.")
@repeat_option(1)
@result_option
def trace(file: Path, both: bool, repeat: int, **options: Any) -> None:
    """Run the requests of FILE.

    It is JSON: {"requests": [{"prompt_len": 7, "output_len": 5, "arrival": 0.5}, …]}, arrivals in
    seconds and in order.
    """
    from plamo_ref.bench.simulator import Trace

    _race(Trace.read(file), both, repeat, options)


@bench.command()
@bench_options
@click.option("--scale", default=1.0, show_default=True, help="Of all prompt and output lengths.")
@click.option("--both", is_flag=True, help="Also without prefix caching.")
@repeat_option(3)
@result_option
def prefix(scale: float, both: bool, repeat: int, **options: Any) -> None:
    """Prompts that begin alike: a crowd with one beginning, and chats of several turns."""
    from plamo_ref.bench.prefix import time_workloads
    from plamo_ref.bench.shapes import free_memory

    rows = []
    del options["enable_prefix_caching"]  # the rows say it
    for caching in (True, False)[: 1 + both]:
        core, _ = open_engine(options | {"enable_prefix_caching": caching})
        rows += time_workloads(core, scale, repeat)
        del core  # its memory is the next one's
        free_memory()
    finish("prefix", rows, options)


@bench.command()
@bench_options
@click.option("--compare", is_flag=True, help="Also with kernels compiled when first launched.")
@result_option
def startup(compare: bool, **options: Any) -> None:
    """Seconds from the start of a process to its first token, kernels compiled or not."""
    from dataclasses import asdict

    from plamo_ref.bench.startup import time_startup

    engine = asdict(settings(options))  # refuses here what the new processes would refuse
    finish("startup", time_startup(options["model"], options["shape"], engine, compare), options)


@bench.command()
@click.option("--shape", type=click.Choice(["1b", "8b"]), help="Default: both.")
@result_option
def kernels(shape: str | None, **options: Any) -> None:
    """Every kernel at the published models' shapes against its floor (on a GPU)."""
    import torch

    from plamo_ref.bench.kernels.ceilings import measure_ceilings
    from plamo_ref.bench.kernels.timing import require_gpu, time_kernels

    device = require_gpu()
    ceilings = measure_ceilings(device, torch.bfloat16)
    shapes = [shape.upper()] if shape else ["8B", "1B"]
    rows = [row | ceilings.row() for row in time_kernels(device, shapes, ceilings)]
    finish("kernels", rows, options)


@bench.command()
@bench_options
@click.option("--only", default="", help="Names, as in graphs,overlap; default: all.")
@click.option("--batches", default="1,32,256", show_default=True, help="Requests at a time.")
@click.option("--prompt-len", default=128, show_default=True)
@click.option("--output-len", default=64, show_default=True, callback=more_than_one)
@repeat_option(3)
@result_option
def ablation(
    only: str, batches: str, prompt_len: int, output_len: int, repeat: int, **options: Any
) -> None:
    """What each optimisation buys: a decode step with it switched off alone."""
    from plamo_ref.bench.ablation import ablate, chosen
    from plamo_ref.bench.shapes import open_model

    counts = numbers(batches)
    options |= {"max_num_seqs": max(counts)}
    engine = settings(options)
    rows = chosen([name for name in only.split(",") if name], engine.resolve_device())
    config, load = open_model(options["model"], options["shape"], engine)
    lengths = {"prompt": prompt_len, "output": output_len, "repeat": repeat}
    made: list[dict[str, Any]] = []
    for row in ablate(config, engine, load, rows, counts, **lengths):
        made.append(row)
        keep("ablation", made, options)  # it takes long: what there is must not get lost
    finish("ablation", made, options)


@bench.command()
@click.option("--running", default="1,64,256,1024", show_default=True, help="Numbers of requests.")
@result_option
def scheduler(running: str, **options: Any) -> None:
    """CPU time of a scheduling decision, without a model."""
    from plamo_ref.bench.scheduling import time_decisions

    finish("scheduler", [time_decisions(count) for count in numbers(running)], options)


def _race(trace: "Trace", both: bool, repeat: int, options: dict[str, Any]) -> None:
    """Run the same requests with one scheduler or with both."""
    from plamo_ref.bench.shapes import free_memory
    from plamo_ref.bench.steps import Bench

    rows = []
    for name in ("v0", "v1") if both else (options["scheduler"],):
        core, done = open_engine(options | {"scheduler": name})
        rows.append({"scheduler": name} | Bench.of(core).trace(trace, repeat))
        del core  # its memory is the next one's
        free_memory()
    done(click.get_current_context().info_name or "", rows)
