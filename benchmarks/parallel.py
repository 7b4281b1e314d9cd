"""A model on one GPU and on several, in one call: `python benchmarks/parallel.py [--ranks 1,2,4]`.

    python benchmarks/parallel.py [--model FOLDER | --shape 8b] [--ranks 1,2,2f,4,1x2,1x2w]
        [--batches 1,32,256] [--prompt-len 128] [--output-len 64] [--prefill 8192]
        [--mixed 256] [--seats 256] [--scale 1.0] [--repeat 3] [--device cuda] [--json FILE]

`1x2` is one rank in each of two stages, and `1x2w` the same without overlap: its host waits for
each round. `2f` is two ranks whose sums are made by the kernels that read them.

First the embedded model on two ranks must say, in float32, what it says on one. Then for each kind
of engine: what the ranks' messages cost alone, a decode step by batch, a prompt, and the mixed
workload. Each row has its floor's parts: bytes of weights that a rank reads in a step, and messages
of a step, one behind the other. `of_one` is the time over that of the first engine.

`--model tiny --device cpu --ranks 1,2,1x2 --batches 1,3 --output-len 4 --prefill 40 --mixed 3
--scale 0.02 --repeat 1 --memory-bytes 16000000` rehearses it on a CPU. Exits with 1 if the texts
differ.

Invariant: all rows are of one machine and one call; each engine has a process of its own, which is
gone before the next one starts.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from plamo_ref import LLM, SamplingParams
from plamo_ref.bench.report import report, write
from plamo_ref.bench.shapes import SHAPES, open_model
from plamo_ref.bench.simulator import Trace
from plamo_ref.bench.steps import step_seconds, warm_up
from plamo_ref.bench.workloads import run, uniform
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.build import build_core
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.core import EngineCore
from plamo_ref.parallel.cut import of_rank

PROMPTS = ["吾輩は", "To be, or", "三四郎は" * 20]
MESSAGES = 200  # in a measurement of what one costs


@dataclass(frozen=True)
class Kind:
    """An engine."""

    ranks: int
    stages: int = 1
    fused: bool = False
    waits: bool = False

    @classmethod
    def of(cls, text: str) -> "Kind":
        """ "2", "2f", "1x2", "1x2w"."""
        ranks, _, stages = text.rstrip("fw").partition("x")
        return cls(int(ranks), int(stages or 1), text.endswith("f"), text.endswith("w"))


# --- the same texts -------------------------------------------------------------------------------


def ids(device: str, text: str) -> list[Any]:
    """What an engine says with the embedded model."""
    kind = Kind.of(text)
    params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    settings = {"device": device, "dtype": "float32", "memory_bytes": 64 << 20}
    settings |= {"tensor_parallel_size": kind.ranks, "disable_custom_all_reduce": not kind.fused}
    with LLM("tiny", **settings) as llm:
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def same_ids(device: str, fused: bool) -> bool:
    """Whether two ranks say what one says; those that add in kernels, too. In other processes: a
    GPU that was asked for what it has not is lost to the process that asked."""
    found = []
    for text in ("1", "2", "2f")[: 2 + fused]:
        command = [sys.executable, __file__, "--device", device, "--ids", text]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        found.append(done.stdout.splitlines()[-1:] if not done.returncode else text)
    print(f"the embedded model on one rank, two, two fused: {[f == found[0] for f in found]}")
    return all(each == found[0] for each in found)


# --- messages alone -------------------------------------------------------------------------------


def messages_a_step(config: Plamo2Config, ranks: int, stages: int) -> int:
    """The step's vector; sums behind o, down, out and bcdt, and the logits; the stream between
    stages."""
    sums = 2 * config.num_hidden_layers + len(config.layers_of("mamba"))
    return (ranks * stages > 1) + (sums + 1) * (ranks > 1) + stages - 1


def message_seconds(ranks: int, device: str, sizes: list[tuple[int, int]]) -> list[float]:
    """Of a sum over the ranks of a [tokens, hidden] tensor, one behind the other, by size."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    mp.spawn(_time_messages, (ranks, device, port, sizes, results), nprocs=ranks)
    found: list[float] = results.get()
    return found


def _time_messages(
    rank: int, ranks: int, device: str, port: int, sizes: list[tuple[int, int]], results: Any
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=ranks)
    seconds = []
    for size in sizes:
        x = torch.zeros(size, dtype=torch.bfloat16 if on_gpu else torch.float32, device=device)
        for count in (10, MESSAGES):  # the first ones pay for connections
            if on_gpu:
                torch.cuda.synchronize()
            dist.barrier()
            started = time.perf_counter()
            for _ in range(count):
                dist.all_reduce(x)
            if on_gpu:
                torch.cuda.synchronize()
            spent = (time.perf_counter() - started) / count
        seconds.append(spent)
    if rank == 0:
        results.put(seconds)
    dist.destroy_process_group()


# --- steps ----------------------------------------------------------------------------------------


def rows_of(text: str, words: list[str], one: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of an engine of so many ranks and stages, as a process of its own says them; `one`
    holds the times of the first engine."""
    rows = []
    command = [sys.executable, __file__, *words, "--alone", text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("{"):
                continue
            row = json.loads(line)
            row["of_one"] = round(row["ms"] / one.setdefault(row["what"], row["ms"]), 3)
            rows.append(row)
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if process.returncode:
        print(f"engine {text} FAILED", flush=True)
        rows.append({"ranks": Kind.of(text).ranks, "what": f"engine {text} failed", "ms": 0.0})
    return rows


def measure(kind: Kind, args: argparse.Namespace) -> None:
    """Print the rows of an engine, each as a line of JSON."""
    ranks, stages = kind.ranks, kind.stages
    engine = EngineConfig(
        device=args.device,
        tensor_parallel_size=ranks,
        pipeline_parallel_size=stages,
        disable_custom_all_reduce=not kind.fused,
        overlap=False if kind.waits else None,
        max_num_seqs=max(*args.batches, args.seats or 1),
        max_num_batched_tokens=max(args.prefill, 2048),
        memory_bytes=args.memory_bytes,
    )
    config, load = open_model(args.model, args.shape, engine)
    started = time.perf_counter()
    core, plan = build_core(config, engine, load)
    opened = time.perf_counter() - started
    read = numbers_read(config, ranks) * core.runner.model.embedding.element_size()
    about = {
        "ranks": ranks,
        "stages": stages,
        "fused": kind.fused,
        "waits": kind.waits,
        "weights_gb_a_step": round(read / stages / 1e9, 3),
        "messages": messages_a_step(config, ranks, stages),
    }

    def say(what: str, found: dict[str, Any]) -> None:
        print(json.dumps(about | {"what": what} | found), flush=True)

    say("open", {"ms": round(opened * 1e3, 1), "seats": plan.max_num_seqs})
    try:
        for batch in args.batches:
            step, spread = step_seconds(core, batch, args.prompt_len, args.output_len, args.repeat)
            say(f"decode {batch}", times(step, spread))
        step, spread = prompt_seconds(core, args.prefill, args.repeat)
        say(f"prefill {args.prefill}", times(step, spread))
        trace = Trace.mixed(args.mixed, args.scale)
        warm_up(core, trace)
        seconds = [run(core, trace).seconds for _ in range(args.repeat)]
        say(f"mixed {args.mixed}", times(median(seconds), max(seconds) - min(seconds)))
    finally:
        core.runner.close()


def numbers_read(config: Plamo2Config, ranks: int) -> int:
    """Weights that a rank reads in a step: all of its own, but the head's rows alone of what the
    vocabulary has."""
    vocabulary = config.vocab_size * config.hidden_size
    tables = vocabulary * (1 if config.tie_word_embeddings else 2)
    return of_rank(config, 0, ranks).num_parameters - tables + vocabulary // ranks


def times(seconds: float, spread: float) -> dict[str, float]:
    return {"ms": round(seconds * 1e3, 3), "spread_ms": round(spread * 1e3, 3)}


def prompt_seconds(core: EngineCore, length: int, repeat: int) -> tuple[float, float]:
    """Of one prompt, and how far the longest run was from the shortest."""
    trace = uniform(1, length, 1)
    for _ in range(2):  # the second one may be recorded
        run(core, trace)
    runs = [run(core, trace).seconds for _ in range(repeat)]
    return median(runs), max(runs) - min(runs)


def engines(text: str) -> list[str]:
    """ "2,1x2" → each engine's."""
    kinds = text.split(",")
    for each in kinds:
        Kind.of(each)  # which says what is none
    return kinds


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--shape", choices=list(SHAPES))
    parser.add_argument("--ranks", type=engines, default=engines("1,2,4,1x2"))
    parser.add_argument("--batches", type=numbers, default=[1, 32, 256])
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--prefill", type=int, default=8192)
    parser.add_argument("--mixed", type=int, default=256)
    parser.add_argument("--seats", type=int, help="default: the largest batch")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--memory-bytes", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ids", help=argparse.SUPPRESS)
    parser.add_argument("--alone", help=argparse.SUPPRESS)  # one of --ranks
    args = parser.parse_args()
    if args.alone:
        measure(Kind.of(args.alone), args)
        return 0
    if args.ids:
        print(json.dumps(ids(args.device, args.ids)))
        return 0
    same = same_ids(args.device, any(Kind.of(text).fused for text in args.ranks))
    print(f"two ranks of the embedded model: {'ids equal' if same else 'IDS DIFFER'}", flush=True)
    config, _ = open_model(args.model, args.shape, EngineConfig())
    rows: list[dict[str, Any]] = []
    one: dict[str, float] = {}
    timed: set[int] = set()
    for text in args.ranks:
        ranks = Kind.of(text).ranks
        if ranks > 1 and ranks not in timed:
            timed.add(ranks)
            sizes = [(tokens, config.hidden_size) for tokens in (*args.batches, args.prefill)]
            for size, spent in zip(sizes, message_seconds(ranks, args.device, sizes), strict=True):
                what = f"one message of {size[0]} x {size[1]}"
                rows.append({"ranks": ranks, "what": what, "ms": round(spent * 1e3, 4)})
                print(f"ranks {ranks}  {what}: {spent * 1e6:.1f} us", flush=True)
        rows += rows_of(text, sys.argv[1:], one)
        if args.json:  # also if a later engine fails
            write(report("parallel", rows) | {"ids_equal": same}, args.json)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
