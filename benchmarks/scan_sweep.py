"""Which cut of a prefill scan and of its convolution is fastest: `python benchmarks/scan_sweep.py`.

It made the tables in plamo_ref/kernels/ssm/triton_plan.py and ../conv/triton_prefill.py. Every
candidate is compared with the twin in float64 first, then timed in a CUDA graph at the 8B shape:
one long prompt, many short ones, and parts of a few tokens. Needs a GPU; `--dry` goes through all
of it with one tiny case in Triton's interpreter. `--json FILE` keeps every row.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from plamo_ref.bench.kernels.cases import conv_cases, scan_cases
from plamo_ref.bench.kernels.parts import MODELS, SMALL, Case, Maker

COPY_BANDWIDTH, TENSOR_RATE = 4.28e12, 768e12  # of one H200: bytes read and written /s, FLOP/s
SHOWN = 12  # rows of a case; the file of --json has all
LENGTHS = [64 + 960 * (7 * i % 30) // 29 for i in range(30)]  # 64 to 1024
PROMPTS: dict[str, tuple[int, ...]] = {
    "one 8192": (8192,),
    "one 2048": (2048,),
    "30 of 64-1024": (*LENGTHS[:-1], 16384 - sum(LENGTHS[:-1])),
    "one 256": (256,),
    "8 of 16": (16,) * 8,
}
DRY_PROMPTS: dict[str, tuple[int, ...]] = {"dry": (70, 3)}
WALKS = [  # chunk, block, warps, stages
    (64, 128, 4, 1), (64, 128, 4, 2), (64, 128, 4, 3), (64, 128, 8, 1), (64, 128, 8, 2),
    (64, 64, 4, 1), (64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 2), (32, 64, 4, 2),
    (32, 128, 4, 2), (128, 128, 8, 1), (128, 64, 8, 1),
]  # fmt: skip
SHORT_WALKS = [(16, 32, 4, 1), (16, 64, 4, 1), (16, 128, 4, 1), (16, 32, 2, 1), (16, 16, 2, 1)]
SUMS = [(128, 4, 3), (128, 4, 2), (128, 4, 4), (64, 4, 3), (64, 4, 4), (128, 8, 3)]
SEGMENTS = (256, 512, 1024, 2048)
CONVS = [  # tokens of a program, block, warps, tile
    (64, 128, 4, 16), (32, 128, 4, 16), (128, 128, 4, 16), (16, 128, 4, 16), (64, 256, 4, 8),
    (64, 256, 4, 16), (64, 128, 4, 8), (64, 256, 8, 16), (64, 512, 8, 8), (32, 256, 4, 8),
    (64, 128, 2, 8), (64, 64, 4, 32),
]  # fmt: skip


def plans(counts: tuple[int, ...], best: tuple[Any, ...] | None) -> Iterator[tuple[str, Any]]:
    """Labels and plans: first ways to walk, then, with the best of them, ways to make the sums."""
    from plamo_ref.kernels.launch import Config
    from plamo_ref.kernels.ssm.triton_plan import PLAN, Plan

    def config(block: int, warps: int, stages: int) -> Config:
        return Config(up_to=1 << 30, block=block, warps=warps, stages=stages)

    if best is not None:
        plan = best[1]
        for sums in SUMS if plan.segment < max(counts) else ():
            yield f"{best[0]} sums {sums}", replace(plan, sums=config(*sums))
        return
    longest = max(counts)
    useful = [s for s in SEGMENTS if s < longest]
    useful += [s for s in SEGMENTS if s >= longest][:1]  # in which nobody is cut
    for chunk, block, warps, stages in SHORT_WALKS + WALKS if longest <= 256 else WALKS:
        for segment in useful:
            plan = Plan(chunk, config(block, warps, stages), PLAN.sums, PLAN.carry, segment)
            yield f"chunk {chunk} block {block} w{warps} s{stages} segment {segment}", plan


def dry_plans(counts: tuple[int, ...], best: tuple[Any, ...] | None) -> Iterator[tuple[str, Any]]:
    for label, plan in list(plans((300,), best))[:2]:
        small = replace(plan, chunk=16, segment=32, sums=replace(plan.sums, block=16))
        yield label, small


def compile_plan(plan: Any) -> str:
    """In a process of its own: afterwards the kernels are in the cache folder."""
    from plamo_ref.kernels.ssm.triton_scan import scan_prefill

    try:
        (case,) = scans(Maker(torch.device("cpu"), torch.bfloat16), MODELS[0], (64, 4000))
        inputs, params, *memory = map(without_content, case.arguments)
        partial(scan_prefill, plan=plan)(inputs, params, *memory)
    except Exception as error:
        return f"{plan}: {str(error)[-200:]}"
    return ""


def without_content(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    return replace(value, **{name: without_content(part) for name, part in vars(value).items()})


def scans(make: Maker, shape: Any, counts: tuple[int, ...]) -> list[Case]:
    made = scan_cases(make, shape, 1, counts)
    return [case for case in made if case.operation == "scan_prefill"]


def measured(case: Case, table: Any, truth: list[torch.Tensor]) -> tuple[float, float]:
    """Seconds of one call, and its error against the truth."""
    from plamo_ref.bench.kernels.ceilings import median_seconds
    from plamo_ref.bench.kernels.check import compare, results
    from plamo_ref.bench.kernels.timing import copied, graph_seconds

    error, _ = compare(results(case, table), truth)
    # Every run moves the slots' states on: the case itself stays for the next candidate.
    case = replace(case, arguments=tuple(map(copied, case.arguments)))
    if torch.cuda.is_available():
        return graph_seconds(case, table), error
    call = partial(getattr(table, case.operation), *case.arguments)
    return median_seconds(call, torch.device("cpu"), seconds=0, at_least=1), error


def race(name: str, case: Case, candidates: Any, table_of: Any, limit: float) -> list[dict]:
    """Rows of all candidates of one case, fastest first; one that fails is a line, no more."""
    from plamo_ref.bench.kernels.check import compare, results
    from plamo_ref.kernels.choice import TORCH

    truth = results(case, TORCH, torch.float64)
    own, _ = compare(results(case, TORCH), truth)
    moved, operations = case.moved_bytes, case.operations
    floor = max(moved / COPY_BANDWIDTH, operations / TENSOR_RATE)
    print(f"\n{case.operation} {name}: floor {floor * 1e6:.1f} µs, twin's error {own:.1e}")
    rows, found, best = [], [], None
    for turn in range(2):
        for label, candidate in candidates(best) if turn == 0 or best else ():
            try:
                took, error = measured(case, table_of(candidate), truth)
            except Exception as problem:
                print(f"  failed: {label}: {str(problem)[-120:]}", flush=True)
                continue
            rows.append({
                "case": name, "operation": case.operation, "candidate": label,
                "us": round(took * 1e6, 1), "gb_per_s": round(moved / took / 1e9),
                "tflop_per_s": round(operations / took / 1e12, 1), "error": error,
                "percent_of_floor": round(100 * floor / took, 1), "good": error <= limit,
            })  # fmt: skip
            found.append((took, label, candidate, error <= limit))
        good = [entry for entry in found if entry[3]]
        best = min(good, key=lambda entry: entry[0])[1:3] if good else None
    rows.sort(key=lambda row: (not row["good"], row["us"]))
    for row in rows[:SHOWN] + [row for row in rows[SHOWN:] if not row["good"]]:
        print(
            f"  {row['us']:9.1f} µs {row['gb_per_s']:5d} GB/s {row['tflop_per_s']:6.1f} TFLOP/s "
            f"{row['percent_of_floor']:5.1f}% {row['error']:.1e} {'' if row['good'] else 'BAD '}"
            f"{row['candidate']}"
        )
    if best and torch.cuda.is_available():
        print_kernels(case, table_of(best[1]))
    sys.stdout.flush()
    return rows


def print_kernels(case: Case, table: Any) -> None:
    """How the time of the best candidate is divided among its kernels."""
    call = partial(getattr(table, case.operation), *case.arguments)
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(5):
            call()
        torch.cuda.synchronize()
    parts = [(e.key, e.self_device_time_total / 5) for e in profile.key_averages()]
    print("  of which " + ", ".join(f"{key} {us:.1f}" for key, us in parts if "kernel" in key))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is defined
        prompts, shape, dtype, device = DRY_PROMPTS, SMALL[0], torch.float32, "cpu"
    else:
        prompts, shape, dtype, device = PROMPTS, MODELS[0], torch.bfloat16, "cuda"
        every = {plan for counts in PROMPTS.values() for _, plan in plans(counts, None)}
        every |= {plan for _, plan in plans((8192,), ("", next(iter(plans((8192,), None)))[1]))}
        # The segment is not compiled in.
        every = {replace(plan, segment=256) for plan in every}
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            for problem in filter(None, pool.map(compile_plan, every)):
                print("does not compile:", problem)
        print(f"{torch.cuda.get_device_name()}, compiled in {time.perf_counter() - started:.0f} s")
    rows = sweep(prompts, shape, dtype, torch.device(device), options.dry)
    print(f"{time.perf_counter() - started:.0f} s in all")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return 0 if rows and all(row["good"] for row in rows) else 1


def sweep(prompts: Any, shape: Any, dtype: Any, device: torch.device, dry: bool) -> list[dict]:
    from plamo_ref.bench.kernels.check import LIMITS
    from plamo_ref.kernels.choice import triton_table
    from plamo_ref.kernels.conv import triton_prefill as triton_conv_prefill
    from plamo_ref.kernels.launch import Config
    from plamo_ref.kernels.ssm.triton_scan import scan_prefill

    table, rows = triton_table(), []

    def with_plan(plan: Any) -> Any:
        return replace(table, scan_prefill=partial(scan_prefill, plan=plan))

    def with_conv(candidate: tuple[int, ...]) -> Any:
        tokens, block, warps, tile = candidate
        configs = (Config(up_to=1 << 30, block=block, warps=warps, tile=tile),)
        changed = patch.multiple(triton_conv_prefill, CONFIGS=configs, TOKENS=tokens)
        return replace(table, conv_prefill=changed(triton_conv_prefill.conv_prefill))

    def convs(best: Any) -> list[tuple[str, Any]]:
        labelled = [(f"tokens {c[0]} block {c[1]} w{c[2]} tile {c[3]}", c) for c in CONVS]
        return [] if best else labelled[:2] if dry else labelled

    for name, counts in prompts.items():
        make = Maker(device, dtype)
        (case,) = scans(make, shape, counts)
        candidates = partial(dry_plans if dry else plans, counts)
        rows += race(name, case, candidates, with_plan, LIMITS[dtype])
        if name in ("one 8192", "30 of 64-1024", "dry"):
            *_, case = conv_cases(make, shape, 1, counts)
            rows += race(name, case, convs, with_conv, LIMITS[dtype])
    return rows


if __name__ == "__main__":
    sys.exit(main())
