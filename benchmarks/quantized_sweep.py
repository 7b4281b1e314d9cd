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
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
import triton

from plamo_ref.kernels.launch import Config
from plamo_ref.kernels.linear import triton_quantized as table
from plamo_ref.kernels.linear import triton_words_product as launcher
from plamo_ref.kernels.linear.quantized import quantized_linear, quantized_linear_swiglu
from plamo_ref.kernels.linear.triton import LEAST_COLUMNS
from plamo_ref.kernels.linear.triton_dequantize import dequantize
from plamo_ref.kernels.linear.triton_swiglu import swiglu_parts
from plamo_ref.kernels.norm.triton import add_norm
from plamo_ref.quantization.schemes import SCHEMES
from plamo_ref.quantization.weight import (
    FP8,
    Activations,
    QuantizedTokens,
    QuantizedWeight,
    by_column,
)

T = TypeVar("T")
SHAPES = {  # out, in, what reads it
    "in": (16384, 4096, "whole"),
    "out": (4096, 8192, "norm"),
    "gate_up": (32768, 4096, "swiglu"),
    "down": (4096, 16384, "norm"),
    "qkv": (5120, 4096, "parts"),
    "o": (4096, 4096, "norm"),
}
OF_A_LAYER = {"in": 0.5, "out": 0.5, "qkv": 0.5, "o": 0.5, "gate_up": 1, "down": 1}
WEIGHT_BYTES = 300 << 20  # read in one graph, several times the L2 cache


class Candidate(NamedTuple):
    """A row of a table, and what is not in it."""

    block: int
    tile: int
    warps: int
    stages: int
    slices: int = 0
    prefetch: int = 64  # words of a row that are asked for at once
    most: int = 256  # tokens of a tile

    @property
    def columns(self) -> int:
        """Of a step."""
        return self.tile * max(1, self.slices)


FP8_ROWS = [
    (64, 128, 4, 5), (64, 128, 4, 8), (64, 256, 4, 4), (64, 256, 4, 6), (64, 512, 4, 3),
    (128, 128, 4, 4), (128, 128, 8, 5), (128, 256, 8, 3), (32, 256, 4, 6), (32, 512, 4, 3),
]  # fmt: skip
CANDIDATES = {  # by tokens, up to
    "fp8": {512: FP8_ROWS},
    "int8": {
        16: [(32, 64, 4, 4, 4), (32, 64, 4, 6, 4, 256), (64, 64, 4, 4, 4), (32, 64, 8, 4, 8, 128),
             (32, 64, 2, 8, 2), (128, 128, 8, 4)],
        32: [(64, 128, 4, 6), (128, 128, 8, 4), (128, 64, 4, 6), (32, 64, 4, 4, 4)],
        128: [(128, 128, 8, 4), (128, 64, 8, 6), (256, 64, 8, 4), (64, 64, 4, 6)],
        256: [(128, 64, 8, 4), (128, 128, 8, 3), (256, 64, 8, 4, 0, 64, 128), (64, 64, 4, 4)],
        512: [(128, 64, 8, 4), (256, 64, 8, 4, 0, 64, 128)],
    },
    "int4": {
        16: [(32, 128, 4, 4, 4), (32, 128, 4, 4, 4, 256), (32, 128, 4, 6, 4), (32, 128, 2, 6, 2),
             (64, 128, 4, 4, 4), (32, 128, 8, 4, 8, 128), (16, 128, 4, 6, 4), (64, 128, 2, 4, 2),
             (128, 128, 4, 4)],
        32: [(32, 128, 4, 3, 4), (64, 128, 2, 4, 2), (128, 128, 4, 4), (128, 128, 8, 4),
             (64, 128, 4, 6), (128, 128, 4, 4, 0, 256)],
        128: [(128, 128, 8, 4), (256, 128, 8, 3), (64, 128, 4, 4), (128, 128, 8, 4, 0, 256)],
        256: [(128, 128, 8, 3), (64, 128, 4, 3), (256, 128, 8, 3, 0, 64, 128)],
        512: [(128, 128, 8, 3), (256, 128, 8, 3, 0, 64, 128)],
    },
}  # fmt: skip
PROGRAMS = {32: (256, 512, 1024), 512: (128, 256)}  # wanted in all; by tokens, up to


class Job(NamedTuple):
    """One way to multiply."""

    scheme: str
    shape: str
    tokens: int
    candidate: Candidate
    programs: int
    fused: bool  # SwiGLU is a part of the kernel

    @property
    def parts(self) -> int:
        outs, ins, reader = SHAPES[self.shape]
        if self.fused or reader == "whole":
            return 1
        most = max(1, ins // max(LEAST_COLUMNS, self.candidate.columns))
        blocks = triton.cdiv(outs, self.candidate.block)
        each = self.programs // (blocks * triton.cdiv(self.tokens, self.candidate.most))
        return min(most, 1 << max(1, each).bit_length() - 1)


def up_to(table: dict[int, T], tokens: int) -> T:
    return table[min(most for most in table if tokens <= most)]


def name_of(candidate: Candidate) -> str:
    return ",".join(map(str, candidate))


def jobs(schemes: list[str], shapes: list[str], counts: list[int]) -> Iterator[Job]:
    for scheme, shape, tokens in itertools.product(schemes, shapes, counts):
        for words in up_to(CANDIDATES[SCHEMES[scheme].format], tokens):
            candidate = Candidate(*words)
            if SHAPES[shape][2] == "swiglu":
                yield Job(scheme, shape, tokens, candidate, 0, True)
            for programs in up_to(PROGRAMS, tokens):
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
    """The product, and where the table decides in how many parts it comes, what adds them."""
    row = job.candidate
    launcher.PREFETCH_WORDS, launcher.MOST_TOKENS = row.prefetch, row.most
    config = Config(1 << 30, row.block, row.warps, row.stages, row.tile, slices=row.slices)
    configs = table.SWIGLU_CONFIGS if job.fused else table.CONFIGS
    configs[table._kind(x, weight)] = (config,)  # type: ignore[assignment]
    made = table._few_tokens(x, weight, job.parts, swiglu=job.fused, pdl=True)
    return made if job.fused else read(job, made)


def read(job: Job, made: torch.Tensor) -> torch.Tensor:
    """What comes next in a layer, if it adds parts."""
    reader = SHAPES[job.shape][2]
    if reader == "swiglu":
        return swiglu_parts(made, torch.bfloat16, pdl=True)
    if reader == "norm":
        stream = made.new_empty(made.shape[1:], dtype=torch.bfloat16)  # any numbers
        gain = stream.new_empty(stream.shape[1])
        add_norm(stream, made, gain, gain, 1e-6, pdl=True)
    return made


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
    outs, ins, reader = SHAPES[of_case[0].shape]
    torch.manual_seed(0)
    size = outs * ins * (0.52 if of_case[0].scheme == "int4" else 1)
    copies = max(1, int(WEIGHT_BYTES / size))
    x, weights = operands(of_case[0], "cuda", copies)
    twin = quantized_linear_swiglu if reader == "swiglu" else quantized_linear
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
        label = f"{name_of(job.candidate)}/{'fused' if job.fused else job.parts}"
        if label in done:
            continue
        done.add(label)
        try:
            take(label, partial(multiply, job, x))
        except Exception as problem:
            print(job, " ".join(str(problem).split())[:90], flush=True)
    if isinstance(x, QuantizedTokens):
        if reader != "swiglu":
            take("library", partial(table._library, x))
    elif x.shape[0] >= 128:
        plain = [dequantize(weight, torch.bfloat16) for weight in weights]
        of = {id(weight): each for weight, each in zip(weights, plain, strict=True)}
        take("made plain", lambda w: read(of_case[0], table._library(x, w)[None]))
        take("bfloat16", lambda w: read(of_case[0], F.linear(x, of[id(w)])[None]))
        us = graph_us(lambda: [dequantize(w, torch.bfloat16) for w in weights]) / copies
        print(f"to make it plain takes {us:.1f} us", flush=True)
    return sorted(rows, key=lambda row: row["us"])  # type: ignore[return-value, arg-type]


def best_of_all(wanted: list[Job], rows: list[dict[str, object]]) -> Iterator[str]:
    """Of every scheme and number of tokens the configurations that serve all of a layer's products
    best, with the time of those that were measured."""
    us = {(r["scheme"], r["weight"], r["tokens"], r["config"]): float(r["us"]) for r in rows}  # type: ignore[arg-type]
    sums: dict[tuple[str, int], dict[str, list[float]]] = {}
    for job in wanted:
        of_case = sums.setdefault((job.scheme, job.tokens), {})
        label = f"{name_of(job.candidate)}/{'fused' if job.fused else job.parts}"
        took = us.get((job.scheme, job.shape, job.tokens, label))
        if took is not None and not job.fused:
            name = f"{name_of(job.candidate)} programs={job.programs}"
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
