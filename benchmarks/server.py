"""How the server does: `python benchmarks/server.py overhead load crowd`, or some of the three.

overhead  the same requests all at once, through `LLM` and through HTTP: what the server costs, in
          seconds, and in CPU time of its two processes for each token
load      open loop: requests arrive at random (Poisson) at 1 to 64 a second, whether or not the
          earlier ones are done; throughput, time to first token, time between tokens, latency
crowd     500 requests at a time, then 2,000 that hang up; the engine must be left with nothing

With `--shape 8b` the model has the published shape and random weights. The client is a bare socket,
so that it costs little of the machine that it measures. Traffic stays on 127.0.0.1.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from serving import Server, Visit, hang_up, model_folder, request_bytes, running_server, visit

from plamo_ref.bench.report import report, write
from plamo_ref.bench.shapes import SHAPES
from plamo_ref.bench.workloads import percentiles, prompt_ids
from plamo_ref.engine.llm import LLM
from plamo_ref.sampling import SamplingParams

RATES = (1, 2, 4, 8, 16, 32, 64)  # requests a second
VOCAB = 5120  # ids below it are in every PLaMo 2
Row = dict[str, Any]


def load(server: Server, options: argparse.Namespace, _: str) -> list[Row]:
    rows = []
    asyncio.run(_open_loop(server, 8, 1, options))
    for rate in options.rates:
        visits = asyncio.run(_open_loop(server, rate, options.seconds, options))
        seconds = max(v.done for v in visits) - min(v.sent for v in visits)
        gaps = [b - a for v in visits for a, b in zip(v.arrivals, v.arrivals[1:], strict=False)]
        row = {
            "requests_per_s": rate,
            "requests": len(visits),
            "failed": sum(not v.ok for v in visits),
            "output_tokens_per_s": round(len(visits) * options.output_len / seconds, 1),
            "ttft_ms": percentiles([v.arrivals[0] - v.sent for v in visits if v.arrivals]),
            "itl_ms": percentiles(gaps),
            "latency_ms": percentiles([v.done - v.sent for v in visits]),
        }
        rows.append(row)
        print(row, flush=True)
    return rows


async def _open_loop(
    server: Server, rate: float, seconds: float, options: argparse.Namespace
) -> list[Visit]:
    """Requests at random times, `rate` a second on average."""
    rng = random.Random(rate)
    due, visits, started = 0.0, [], time.perf_counter()
    for number in range(max(4, round(rate * seconds))):
        due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
        ids = prompt_ids(number, options.prompt_len, VOCAB)
        data = request_bytes(ids, options.output_len, stream=True)
        visits.append(asyncio.create_task(visit(server.address, data)))
    return await asyncio.gather(*visits)


async def _all_at_once(address: str, requests: list[bytes]) -> None:
    visits = await asyncio.gather(*(visit(address, data) for data in requests))
    failed = sum(not v.ok for v in visits)
    assert not failed, f"{failed} of {len(visits)} requests failed"


def overhead(server: Server, options: argparse.Namespace, folder: str) -> list[Row]:
    """Alternating, so that a machine that slows down slows all down."""
    prompts = [prompt_ids(i, options.prompt_len, VOCAB) for i in range(options.requests)]
    params = SamplingParams(temperature=0, max_tokens=options.output_len, ignore_eos=True)
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))  # as many as the engine process has
    llm = LLM(folder, **options.engine)
    ways: dict[str, Callable[[], Any]] = {
        "offline": lambda: llm.generate(prompts, params, use_tqdm=False)
    }
    for name in ("whole", "streamed"):
        data = [request_bytes(ids, options.output_len, name == "streamed") for ids in prompts]
        ways[name] = lambda data=data: asyncio.run(_all_at_once(server.address, data))
    runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for _ in range(options.repeats + 1):  # the first warms up
        for name, way in ways.items():
            own, front, engine = time.process_time(), *server.cpu_seconds()
            started = time.perf_counter()
            way()
            seconds = time.perf_counter() - started
            own, front, engine = (
                time.process_time() - own,
                server.cpu_seconds()[0] - front,
                server.cpu_seconds()[1] - engine,
            )
            runs[name].append((seconds, front, own if name == "offline" else engine))
    tokens = len(prompts) * options.output_len
    rows = [_overhead_row(name, measured[1:], tokens) for name, measured in runs.items()]
    for row in rows:
        row["overhead"] = round(row["seconds"] / rows[0]["seconds"] - 1, 4)
        print(row, flush=True)
    return rows


def _overhead_row(name: str, runs: list[tuple[float, float, float]], tokens: int) -> Row:
    """Medians. Offline, the engine's CPU time is that of the process with the `LLM`."""
    seconds, front, engine = (median(column) for column in zip(*runs, strict=True))
    return {
        "way": name,
        "seconds": round(seconds, 4),
        "runs": [round(run[0], 3) for run in runs],
        "output_tokens_per_s": round(tokens / seconds, 1),
        "front_cpu_us_per_token": round(1e6 * front / tokens, 1),
        "engine_cpu_us_per_token": round(1e6 * engine / tokens, 1),
    }


def crowd(server: Server, _: argparse.Namespace, folder: str) -> list[Row]:
    data = [request_bytes(prompt_ids(i, 8, VOCAB), 4, stream=True) for i in range(500)]
    started = time.perf_counter()
    asyncio.run(_all_at_once(server.address, data))
    rows = [{"crowd": "500 at a time", "seconds": round(time.perf_counter() - started, 2)}]
    started = time.perf_counter()
    asyncio.run(_come_and_go(server.address, 2000))
    while any(server.numbers().values()):
        if time.perf_counter() - started > 300:
            sys.exit(f"leaked: {server.numbers()}")
        time.sleep(0.1)
    seconds = round(time.perf_counter() - started, 2)
    rows.append({"crowd": "2000 that hang up, until nothing is held", "seconds": seconds})
    print(*rows, sep="\n", flush=True)
    return rows


async def _come_and_go(address: str, count: int) -> None:
    data = request_bytes([1, 200, 300], 8_000, stream=True)
    for start in range(0, count, 100):
        numbers = range(start, start + 100)
        await asyncio.gather(*(hang_up(address, data, i % 2 == 1) for i in numbers))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    measures = {"overhead": overhead, "load": load, "crowd": crowd}
    parser.add_argument("what", nargs="+", choices=measures)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seconds", type=float, default=10, help="of each rate")
    parser.add_argument("--requests", type=int, default=128, help="of `overhead`")
    parser.add_argument("--repeats", type=int, default=3, help="of `overhead`")
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--memory-bytes", type=int, default=512 << 20)
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--graph-tokens", type=int, help="0: prompts launched kernel by kernel")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    described = {"model": options.shape or options.model}
    rows = []
    with model_folder(options.model, options.shape) as (folder, engine):
        names = ("max_num_seqs", "memory_bytes", "max_model_len", "graph_tokens")
        given = {name: getattr(options, name) for name in names}
        options.engine = engine | {k: v for k, v in given.items() if v is not None}
        with running_server(folder, options.engine) as server:
            for what in options.what:
                found = measures[what](server, options, folder)
                rows += [described | {"what": what} | row for row in found]
    if options.json is not None:
        write(report("server", rows), options.json)


if __name__ == "__main__":
    main()
