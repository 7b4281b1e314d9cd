"""Which configuration multiplies a few tokens with a quantized weight fastest.

`python benchmarks/quantized_sweep.py` made the tables in
plamo_ref/kernels/linear/triton_quantized.py. For every projection of the 8B shape, every scheme and
several numbers of tokens it times candidates on weights that do not fit the cache, all launches in
one CUDA graph, as a decode step makes them; of fp8 the library's product as well. SwiGLU is a part
of the kernel ("fused") or a pass of its own behind it, which is timed with it. The last lines say
which one configuration is the best for all products of a layer. Needs a GPU.

Kernels are compiled by all cores first; rows are written as they come, and --seconds ends it.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from plamo_ref.kernels.launch import Config
from plamo_ref.kernels.linear import triton_quantized as table
from plamo_ref.kernels.linear.quantized import quantized_linear, quantized_linear_swiglu
from plamo_ref.kernels.linear.triton import LEAST_COLUMNS
from plamo_ref.kernels.linear.triton_swiglu import swiglu_parts
from plamo_ref.quantization.schemes import SCHEMES
from plamo_ref.quantization.weight import (
    FP8,
    Activations,
    QuantizedTokens,
    QuantizedWeight,
    by_column,
)

SHAPES = {  # out, in, SwiGLU
    "in": (16384, 4096, False),
    "out": (4096, 8192, False),
    "gate_up": (32768, 4096, True),
    "down": (4096, 16384, False),
    "qkv": (5120, 4096, False),
    "o": (4096, 4096, False),
}
OF_A_LAYER = {"in": 0.5, "out": 0.5, "qkv": 0.5, "o": 0.5, "gate_up": 1, "down": 1}
WEIGHT_BYTES = 300 << 20  # read in one graph, several times the L2 cache
#       block, tile, warps, stages
BYTES = [
    (64, 128, 4, 5), (64, 128, 4, 8), (64, 256, 4, 4), (64, 256, 4, 6), (64, 512, 4, 3),
    (128, 128, 4, 4), (128, 128, 8, 5), (128, 256, 8, 3), (32, 256, 4, 6), (32, 512, 4, 3),
]  # fmt: skip
#       … and words of a row that are asked for at once
INT8 = [
    (128, 128, 8, 4, 64), (128, 128, 8, 4, 256), (64, 256, 4, 4, 64), (64, 256, 4, 4, 256),
    (64, 128, 4, 6, 64), (64, 128, 4, 6, 256),
]  # fmt: skip
INT4 = [
    (128, 128, 4, 4, 64), (128, 128, 4, 4, 128), (128, 128, 4, 4, 256), (128, 128, 8, 4, 64),
    (128, 128, 8, 4, 256), (64, 128, 4, 6, 128),
]  # fmt: skip
PROGRAMS = (128, 256, 512)  # wanted in all, by turns
CANDIDATES = {"fp8": BYTES, "int8": INT8, "int4": INT4}


class Job(NamedTuple):
    """One way to multiply."""

    scheme: str
    shape: str
    tokens: int
    candidate: tuple[int, ...]
    programs: int
    fused: bool  # SwiGLU is a part of the kernel

    @property
    def parts(self) -> int:
        outs, ins, _ = SHAPES[self.shape]
        most = max(1, ins // max(LEAST_COLUMNS, self.candidate[1]))
        each = self.programs // triton.cdiv(outs, self.candidate[0])
        return 1 if self.fused else min(most, 1 << max(1, each).bit_length() - 1)


def jobs(schemes: list[str], shapes: list[str], counts: list[int]) -> Iterator[Job]:
    for scheme, shape, tokens in itertools.product(schemes, shapes, counts):
        for candidate in CANDIDATES[SCHEMES[scheme].format]:
            if SHAPES[shape][2]:
                yield Job(scheme, shape, tokens, candidate, 0, True)
            for programs in PROGRAMS:
                yield Job(scheme, shape, tokens, candidate, programs, False)


def operands(job: Job, device: str, copies: int = 1) -> tuple[Activations, list[QuantizedWeight]]:
    """Any numbers that the scheme could have stored."""
    outs, ins, _ = SHAPES[job.shape]
    scheme = SCHEMES[job.scheme]
    x: Activations = torch.randn(job.tokens, ins, device=device, dtype=torch.bfloat16)
    if scheme.quantized_activations:
        scale = torch.rand(job.tokens, device=device) * 0.01
        x = QuantizedTokens(x.to(FP8), scale, torch.bfloat16)
    weights = []
    for _ in range(copies):
        if scheme.format == "fp8":
            values = torch.randn(outs, ins, device=device).to(FP8)
        else:
            size = ins // 2 if scheme.group else ins
            values = torch.randint(256, (outs, size), device=device, dtype=torch.uint8)
        scale = torch.rand(outs, device=device) * 0.01
        if scheme.group:
            groups = torch.rand(outs, ins // scheme.group, device=device) * 0.01
            scale = by_column(groups.bfloat16())
        weight = QuantizedWeight(
            values, scale, scheme.format, scheme.group, scheme.quantized_activations
        )
        weights.append(weight)
    return x, weights


def multiply(job: Job, x: Activations, weight: QuantizedWeight) -> torch.Tensor:
    block, tile, warps, stages, *words = job.candidate
    table.PREFETCH_WORDS = words[0] if words else table.PREFETCH_WORDS
    config = Config(up_to=1 << 30, block=block, warps=warps, stages=stages, tile=tile)
    configs = table.SWIGLU_CONFIGS if job.fused else table.CONFIGS
    configs[table._kind(x, weight)] = (config,)  # type: ignore[assignment]
    product = table._few_tokens(x, weight, job.parts, swiglu=job.fused, pdl=True)
    if SHAPES[job.shape][2] and not job.fused:
        return swiglu_parts(product, torch.bfloat16, pdl=True)
    return product


def compile_one(job: Job) -> str:
    """In a process of its own: afterwards the kernel is in the cache folder."""
    try:
        x, weights = operands(job, "meta")
        multiply(job, x, weights[0])
    except Exception as error:
        return f"{job}: {' '.join(str(error).split())[:100]}"
    return ""


def graph_us(step: Callable[[], object], repeats: int = 7) -> float:
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times[1:])


def distinct(all_jobs: list[Job]) -> list[Job]:
    """One for each kernel: shapes of a kind share theirs."""
    kernels = {}
    for job in all_jobs:
        rung = max(16, triton.next_power_of_2(job.tokens))
        kernels[job.scheme, job.fused, rung, job.candidate, job.parts > 1] = job
    return list(kernels.values())


def time_case(of_case: list[Job]) -> list[dict[str, object]]:
    """All candidates for one weight and number of tokens, the fastest first."""
    outs, ins, swiglu = SHAPES[of_case[0].shape]
    torch.manual_seed(0)
    size = outs * ins * (0.52 if of_case[0].scheme == "int4" else 1)
    copies = max(1, int(WEIGHT_BYTES / size))
    x, weights = operands(of_case[0], "cuda", copies)
    twin = quantized_linear_swiglu if swiglu else quantized_linear
    truth = twin(x, weights[0]).double()
    rows: list[dict[str, object]] = []

    def take(label: str, product: Callable[[QuantizedWeight], torch.Tensor]) -> None:
        got = product(weights[0]).double()
        error = float(((got.sum(0) if got.dim() > 2 else got) - truth).norm() / truth.norm())
        us = graph_us(lambda: [product(weight) for weight in weights]) / copies
        rate = weights[0].nbytes / us / 1e6
        rows.append({"config": label, "us": us, "tb_per_s": rate, "error": error})

    done: set[str] = set()
    for job in of_case:
        label = f"{job.candidate}/{'fused' if job.fused else job.parts}"
        if label in done:
            continue
        done.add(label)
        try:
            take(label, partial(multiply, job, x))
        except Exception as problem:
            print(job, " ".join(str(problem).split())[:90], flush=True)
    if isinstance(x, QuantizedTokens) and not swiglu:
        take("library", partial(table._library, x))
    return sorted(rows, key=lambda row: row["us"])  # type: ignore[return-value, arg-type]


def best_of_all(wanted: list[Job], rows: list[dict[str, object]]) -> Iterator[str]:
    """Of every scheme and number of tokens the configurations that serve all of a layer's products
    best, with the time of those that were measured."""
    us = {(r["scheme"], r["weight"], r["tokens"], r["config"]): float(r["us"]) for r in rows}  # type: ignore[arg-type]
    sums: dict[tuple[str, int], dict[str, list[float]]] = {}
    for job in wanted:
        of_case = sums.setdefault((job.scheme, job.tokens), {})
        label = f"{job.candidate}/{'fused' if job.fused else job.parts}"
        took = us.get((job.scheme, job.shape, job.tokens, label))
        if took is not None and not SHAPES[job.shape][2]:
            name = f"{job.candidate} programs={job.programs}"
            of_case.setdefault(name, []).append(took * OF_A_LAYER[job.shape])
    for case, found in sums.items():
        whole = max(map(len, found.values()), default=0)
        ranked = sorted((sum(f), name) for name, f in found.items() if len(f) == whole)
        yield f"{case}: " + "   ".join(f"{name} {took:.1f} us" for took, name in ranked[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemes", default="int4,fp8")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--tokens", default="1,32,128")
    parser.add_argument("--seconds", type=float, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    counts = [int(n) for n in options.tokens.split(",")]
    wanted = list(jobs(options.schemes.split(","), options.shapes.split(","), counts))
    begun = time.monotonic()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        for problem in filter(None, pool.map(compile_one, distinct(wanted))):
            print(problem, flush=True)
    took = time.monotonic() - begun
    print(f"{torch.cuda.get_device_name()}, compiled in {took:.0f} s", flush=True)
    rows: list[dict[str, object]] = []
    for case, of_case in itertools.groupby(wanted, lambda job: (job.scheme, job.shape, job.tokens)):
        if time.monotonic() - begun > options.seconds:
            print("out of time")
            break
        found = time_case(list(of_case))
        best = "  ".join(f"{row['config']} {row['us']:.1f}" for row in found[:5])
        bad = [row for row in found if not float(row["error"]) < 1e-2]  # type: ignore[arg-type]
        print(*case, f"{found[0]['tb_per_s']:.2f} TB/s | {best} us", bad[:1] or "", flush=True)
        named = dict(zip(("scheme", "weight", "tokens"), case, strict=True))
        rows += [named | row for row in found]
        if options.json:
            options.json.write_text(json.dumps(rows))
    print(*best_of_all(wanted, rows), sep="\n")


if __name__ == "__main__":
    main()
