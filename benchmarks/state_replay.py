"""What it saves to write a state every k tokens: `python benchmarks/state_replay.py`, on a GPU.

For the 8B shape and each format of a state, one step of the kernel that writes at each token, then
the same step with rings of k entries, whose requests stand at all places of the ring; each with
several ways to cut it into programs, compared with its twin in float64 first. Then 2 k steps of
both kernels side by side: how far outputs are apart, and whether the states are equal to the bit.

Rows are printed as they come, about a minute in all; `--json FILE` keeps them. `--dry` goes through
all of it with a tiny shape in Triton's interpreter.
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from plamo_ref.bench.kernels.parts import MODELS, SMALL, Case, Maker
from plamo_ref.bench.kernels.replay_cases import replay_cases
from plamo_ref.bench.kernels.state_cases import narrow_cases, scan_cases, scan_inputs, scan_params
from plamo_ref.bench.report import report, write

F32, BF16, FP8 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
FORMATS = {"float32": (F32, False), "bfloat16": (BF16, False), "fp8, by chance": (FP8, True)}
WAYS = ((16, 2), (32, 2), (32, 4), (64, 4), (64, 8), (128, 4), (128, 8))  # rows of P, warps
HEADS = ((1 << 30, 4), (1 << 30, 8), (1 << 30, 16))  # where a head has a scale: a program has it
NOW = {"float32": (64, 4), "bfloat16": (64, 4), "fp8, by chance": (1 << 30, 8)}


def cases(make: Maker, shape: Any, name: str, batch: int, tokens: int) -> Case:
    kept = FORMATS[name]
    if tokens > 1:
        return next(replay_cases(make, shape, batch, tokens, kept))
    if kept[0] == FP8:
        return next(narrow_cases(make, shape, batch, (), kept))
    return next(scan_cases(make, shape, batch, (), kept[0]))


def timed(case: Case, way: tuple[int, int]) -> tuple[float, float]:
    """Microseconds of one call cut in this way, and its error."""
    from plamo_ref.bench.kernels.check import compare, results
    from plamo_ref.bench.kernels.timing import graph_seconds
    from plamo_ref.kernels.choice import TORCH, triton_table
    from plamo_ref.kernels.launch import Config
    from plamo_ref.kernels.ssm import triton_narrow, triton_replay, triton_state

    config = Config(up_to=1 << 30, block=way[0], warps=way[1])
    modules, table = (triton_narrow, triton_replay, triton_state), triton_table()
    with (
        patch.multiple(modules[0], STATE_CONFIGS=(config,), HEAD_CONFIGS=(config,)),
        patch.multiple(modules[1], REPLAY_CONFIGS=(config,), HEAD_CONFIGS=(config,)),
        patch.object(modules[2], "STATE_CONFIGS", (config,)),
    ):
        error, _ = compare(results(case, table), results(case, TORCH, torch.float64))
        if not torch.cuda.is_available():
            return 0.0, error
        return graph_seconds(case, table) * 1e6, error


def rows(device: torch.device, shape: Any, batches: tuple[int, ...], dry: bool) -> Iterator[dict]:
    dtype = F32 if dry else BF16
    for name, (kept, _) in FORMATS.items():
        for batch, tokens in ((b, k) for b in batches for k in (1, 4, 8, 16)):
            every = HEADS if kept == FP8 else WAYS
            for way in every[:1] if dry else every if batch == batches[-1] else (NOW[name],):
                case = cases(Maker(device, dtype), shape, name, batch, tokens)
                us, error = timed(case, way)
                rate = case.moved_bytes / us / 1e3 if us else 0.0
                yield {
                    "state": name, "batch": batch, "k": tokens,
                    "rows_of_P": min(way[0], shape.size), "warps": way[1],
                    "us": round(us, 1), "gb_per_s": round(rate), "error": error,
                }  # fmt: skip


def side_by_side(device: torch.device, shape: Any, tokens: int, dry: bool) -> dict[str, Any]:
    """Both kernels from the same states, float32, for two rounds of the ring."""
    from plamo_ref.kernels.choice import triton_table

    table, make = triton_table(), Maker(device, F32 if dry else BF16)
    params, slots = scan_params(make, shape.mamba_heads), make.ints([1, 2, 3])
    (case,) = replay_cases(make, shape, 3, tokens, (F32, False))
    cache = replace(case.arguments[2], ssm=make.noise(*case.arguments[2].ssm.shape, dtype=F32))
    plain, apart = cache.ssm.clone(), 0.0
    for step in range(2 * tokens):
        inputs, lengths = scan_inputs(make, shape, 3), make.ints([tokens + 1 + step] * 3)
        y = table.replay_state_update(inputs, params, cache, slots, lengths)
        truth = table.state_update(inputs, params, plain, slots)
        apart = max(apart, float((y - truth).abs().max() / truth.abs().max()))
    equal = torch.equal(cache.ssm[slots], plain[slots])
    return {"k": tokens, "outputs_apart": apart, "states_equal_to_the_bit": equal}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is defined
    device = torch.device("cpu" if options.dry else "cuda")
    shape, batches = (SMALL[0], (2,)) if options.dry else (MODELS[0], (32, 128, 256))
    started, found = time.perf_counter(), []
    for tokens in (4, 8, 16):
        found.append(side_by_side(device, shape, tokens, options.dry))
        print(found[-1], flush=True)
    for row in rows(device, shape, batches, options.dry):
        found.append(row)
        print(row, f"{time.perf_counter() - started:.0f} s", flush=True)
        if options.json:
            write(report("state_replay", found), options.json)


if __name__ == "__main__":
    main()
