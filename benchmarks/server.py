"""How the server does: `python benchmarks/server.py load | overhead | crowd`.

load      open loop: requests arrive at random (Poisson) at 1 to 64 a second, whether or not the
          earlier ones are done; throughput, time to first token, time between tokens, latency
overhead  the same requests all at once, through `LLM` and through HTTP: what the server costs
crowd     500 requests at a time, then 2,000 that hang up; the engine must be left with nothing

The client is a bare socket, so that it costs little of the machine that it measures. Traffic stays
on 127.0.0.1.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from plamo_ref.bench.report import report, write
from plamo_ref.bench.workloads import percentiles, prompt_ids
from plamo_ref.engine.llm import LLM
from plamo_ref.sampling import SamplingParams

RATES = (1, 2, 4, 8, 16, 32, 64)  # requests a second
VOCAB = 5120  # ids below it are in every PLaMo 2


@dataclass
class Visit:
    """One request, in seconds on one clock."""

    sent: float
    arrivals: list[float] = field(default_factory=list)  # of events with text
    done: float = 0.0
    ok: bool = False


@contextlib.contextmanager
def server(options: argparse.Namespace) -> Iterator[str]:
    """Start `plamo-ref serve`; its address."""
    command = [sys.executable, "-m", "plamo_ref", "serve", "--port", "0", "--model", options.model]
    command += ["--max-num-seqs", str(options.max_num_seqs), "--served-model-name", "m"]
    command += ["--memory-bytes", str(options.memory_bytes), "--max-requests", "4096"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = re.search(r"http://\S+", process.stderr.readline())
        if found is None:
            sys.exit(f"the server did not start: {process.stderr.read()}")
        with urlopen(f"{found[0]}/health", timeout=300):  # answers once the engine is ready
            pass
        try:
            yield found[0]
        finally:
            process.terminate()
            process.wait(60)


def request_bytes(ids: list[int], max_tokens: int, stream: bool) -> bytes:
    body = {"model": "m", "prompt": ids, "max_tokens": max_tokens, "temperature": 0}
    data = json.dumps({**body, "ignore_eos": True, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + data


async def visit(address: str, data: bytes) -> Visit:
    """Send a request, read its answer to the end."""
    place = urlsplit(address)
    seen = Visit(time.perf_counter())
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 20)
    writer.write(data)
    tail = b""
    while part := await reader.read(1 << 16):
        now = time.perf_counter()
        seen.ok = seen.ok or part.startswith(b"HTTP/1.1 200")
        seen.arrivals += [now] * part.count(b'"text":')
        tail = part
    seen.done = time.perf_counter()
    seen.ok = seen.ok and bool(tail)
    writer.close()
    return seen


async def open_loop(address: str, rate: float, options: argparse.Namespace) -> list[Visit]:
    """Requests at random times, `rate` a second on average, for `options.seconds`."""
    rng = random.Random(rate)
    due, visits, started = 0.0, [], time.perf_counter()
    for number in range(max(4, round(rate * options.seconds))):
        due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
        ids = prompt_ids(number, options.prompt_len, VOCAB)
        data = request_bytes(ids, options.output_len, stream=True)
        visits.append(asyncio.create_task(visit(address, data)))
    return await asyncio.gather(*visits)


def load(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with server(options) as address:
        asyncio.run(open_loop(address, 8, argparse.Namespace(**{**vars(options), "seconds": 1})))
        for rate in options.rates:
            visits = asyncio.run(open_loop(address, rate, options))
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
            print(row)
            rows.append(row)
    return rows


async def all_at_once(address: str, requests: list[bytes]) -> float:
    started = time.perf_counter()
    visits = await asyncio.gather(*(visit(address, data) for data in requests))
    assert all(v.ok for v in visits)
    return time.perf_counter() - started


def overhead(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Alternating, so that a machine that slows down slows all down."""
    prompts = [prompt_ids(i, options.prompt_len, VOCAB) for i in range(options.requests)]
    params = SamplingParams(temperature=0, max_tokens=options.output_len, ignore_eos=True)
    llm = LLM(options.model, max_num_seqs=options.max_num_seqs, memory_bytes=options.memory_bytes)
    sent = {
        name: [request_bytes(ids, options.output_len, name == "streamed") for ids in prompts]
        for name in ("whole", "streamed")
    }
    times: dict[str, list[float]] = {"offline": [], "whole": [], "streamed": []}
    with server(options) as address:
        for _ in range(options.repeats + 1):  # the first warms up
            started = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            times["offline"].append(time.perf_counter() - started)
            for name, requests in sent.items():
                times[name].append(asyncio.run(all_at_once(address, requests)))
    rows = []
    offline = median(times["offline"][1:])
    for name, seconds in times.items():
        middle = median(seconds[1:])
        row = {
            "way": name,
            "seconds": [round(s, 3) for s in seconds[1:]],
            "output_tokens_per_s": round(len(prompts) * options.output_len / middle, 1),
            "overhead": round(middle / offline - 1, 4),
        }
        print(row)
        rows.append(row)
    return rows


async def hang_up(address: str, data: bytes, number: int) -> None:
    place = urlsplit(address)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    writer.write(data)
    if number % 2:
        await reader.read(20)
    writer.transport.abort()


async def come_and_go(address: str, count: int) -> None:
    data = request_bytes([1, 200, 300], 20_000, stream=True)
    for start in range(0, count, 100):
        await asyncio.gather(*(hang_up(address, data, i) for i in range(start, start + 100)))


def engine_numbers(address: str) -> dict[str, float]:
    with urlopen(f"{address}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    kept = ("plamo_ref_cache_usage", "plamo_ref_requests_in_flight", "plamo_ref_requests_running")
    return {name: float(value) for name, value in pairs if name.startswith(kept)}


def crowd(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with server(options) as address:
        data = [request_bytes(prompt_ids(i, 8, VOCAB), 4, stream=True) for i in range(500)]
        row: dict[str, Any] = {"what": "500 at a time"}
        row["seconds"] = round(asyncio.run(all_at_once(address, data)), 2)
        rows.append(row)
        started = time.perf_counter()
        asyncio.run(come_and_go(address, 2000))
        while any(engine_numbers(address).values()):
            if time.perf_counter() - started > 300:
                sys.exit(f"leaked: {engine_numbers(address)}")
            time.sleep(0.1)
        seconds = round(time.perf_counter() - started, 2)
        rows.append({"what": "2000 that hang up, until nothing is held", "seconds": seconds})
    for row in rows:
        print(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["load", "overhead", "crowd"])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seconds", type=float, default=10, help="of each rate")
    parser.add_argument("--requests", type=int, default=128, help="of `overhead`")
    parser.add_argument("--repeats", type=int, default=3, help="of `overhead`")
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--memory-bytes", type=int, default=512 << 20)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    rows = {"load": load, "overhead": overhead, "crowd": crowd}[options.what](options)
    if options.json is not None:
        write(report(f"server_{options.what}", rows), options.json)


if __name__ == "__main__":
    main()
