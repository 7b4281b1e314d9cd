"""One engine and several, on batch work: `python benchmarks/replicas.py [--replicas 1,2,4]`.

    python benchmarks/replicas.py [--model FOLDER | --shape 8b] [--replicas 1,2,4]
        [--requests 256] [--scale 1.0] [--repeat 2] [--max-num-seqs 256] [--device cuda]
        [--json FILE]

First two replicas of the embedded model must say what one engine says. Then the mixed workload, so
many requests for each replica, through `LLM.generate`; 1 is an `LLM` without Ray. `of_one` is the
throughput over that of the first row: the number of replicas, if sharing out cost nothing.

`--model tiny --device cpu --replicas 1,2 --requests 4 --scale 0.05 --repeat 1 --memory-bytes
16000000` rehearses it on a CPU. Exits with 1 if the texts differ.

Invariant: all rows are of one machine and one call; an engine is gone before the next one starts.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from serving import model_folder

from plamo_ref import LLM, SamplingParams
from plamo_ref.bench.report import report, write
from plamo_ref.bench.simulator import Trace
from plamo_ref.bench.workloads import prompt_ids

PROMPTS = ["吾輩は", "To be, or", "三四郎は" * 20]


def same_ids(device: str) -> bool:
    """Whether two replicas of the embedded model say what one engine says."""
    params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    settings = {"device": device, "dtype": "float32", "memory_bytes": 64 << 20}
    found = []
    for size in (1, 2):
        with LLM("tiny", **settings, data_parallel_size=size) as llm:
            outputs = llm.generate(PROMPTS, params, use_tqdm=False)
            found.append([output.outputs[0].token_ids for output in outputs])
    return found[0] == found[1]


def row_of(size: int, folder: str, engine: dict[str, Any], args: argparse.Namespace) -> dict:
    """The mixed workload on so many replicas."""
    trace = Trace.mixed(args.requests * size, args.scale)
    params = [
        SamplingParams(temperature=0, max_tokens=one.output_len, ignore_eos=True)
        for one in trace.requests
    ]
    started = time.perf_counter()
    with LLM(folder, **engine, data_parallel_size=size) as llm:
        opened = time.perf_counter() - started
        vocab = llm.model_config.vocab_size
        seconds = []
        for _ in range(args.repeat + 1):  # the first run warms up
            prompts = [prompt_ids(i, one.prompt_len, vocab) for i, one in enumerate(trace.requests)]
            started = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            seconds.append(time.perf_counter() - started)
    tokens = sum(one.output_len for one in trace.requests)
    spent = median(seconds[1:])
    return {
        "replicas": size,
        "requests": len(trace.requests),
        "open_s": round(opened, 1),
        "seconds": round(spent, 3),
        "spread_s": round(max(seconds[1:]) - min(seconds[1:]), 3),
        "output_tokens_per_s": round(tokens / spent, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--shape", choices=["1b", "8b"])
    parser.add_argument("--replicas", default="1,2")
    parser.add_argument("--requests", type=int, default=256, help="For each replica.")
    parser.add_argument("--scale", type=float, default=1.0, help="Of the lengths.")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--memory-bytes", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not same_ids(args.device):
        print("two replicas do not say what one engine says", file=sys.stderr)
        return 1
    print("two replicas say what one engine says", flush=True)
    rows: list[dict[str, Any]] = []
    with model_folder(args.model, args.shape) as (folder, engine):
        engine |= {
            "device": args.device,
            "max_num_seqs": args.max_num_seqs,
            "memory_bytes": args.memory_bytes,
        }
        for size in map(int, args.replicas.split(",")):
            rows.append(row_of(size, folder, engine, args))
            first = rows[0]["output_tokens_per_s"]
            rows[-1]["of_one"] = round(rows[-1]["output_tokens_per_s"] / first, 3)
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
            if args.json:
                write(report("replicas", rows), args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
