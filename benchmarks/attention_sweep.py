"""Which configuration of paged attention is fastest: `python benchmarks/attention_sweep.py`.

It made the tables in plamo_ref/kernels/attention/triton_prefill.py and triton_decode.py. Candidates
take the place of those tables one after the other, so that what is timed is what the engine
launches; each must agree with the torch twin in float32 before its time counts. A candidate that
does not compile, does not fit the shared memory or fails is a line of its case, not the end. About
a minute on a GPU.

    --only prefill|decode    one of the two
    --model 8B|1B            one of the two
    --json FILE              all rows
    --dry                    without a GPU: tiny shapes in Triton's interpreter, no timing meant
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from plamo_ref.bench.kernels.cases import paged_case
from plamo_ref.bench.kernels.ceilings import Ceilings, measure_ceilings
from plamo_ref.bench.kernels.parts import MODELS, SMALL, Case, Maker, Shape
from plamo_ref.bench.kernels.timing import graph_seconds
from plamo_ref.kernels.attention.twin import paged_decode, paged_prefill

LIMIT = 1e-2  # ratio of norms, in bfloat16
ROWS_OF_TWIN = 1024  # queries at a time: the twin's scores are [heads, queries, keys]
# The first line of each is what the tables say now.
#    rows, keys, warps, stages, heads of a tile (0: as the launcher chooses)
PREFILL = [
    (128, 64, 8, 3, 0), (128, 64, 8, 3, 1), (128, 64, 8, 2, 0), (128, 64, 8, 4, 0),
    (128, 128, 8, 2, 0), (128, 128, 8, 3, 0), (128, 128, 8, 2, 1), (128, 32, 8, 5, 0),
    (256, 64, 16, 2, 0), (256, 64, 16, 3, 0), (256, 32, 16, 4, 0),
    (64, 64, 4, 2, 0), (64, 64, 4, 3, 0), (64, 128, 4, 2, 0), (128, 64, 4, 2, 0),
]  # fmt: skip
#    keys, warps, stages, programs wanted, keys of a part at least
DECODE = [
    (64, 4, 3, 256, 128), (64, 4, 4, 256, 128), (64, 4, 5, 256, 128), (32, 4, 4, 256, 128),
    (32, 4, 6, 256, 128), (32, 2, 6, 256, 128), (128, 4, 3, 256, 128), (128, 8, 3, 256, 128),
    (64, 4, 3, 132, 128), (64, 4, 3, 512, 128), (64, 4, 3, 256, 256), (64, 4, 3, 256, 64),
    (32, 4, 4, 512, 64), (32, 4, 6, 512, 64),
]  # fmt: skip
SHARES = (  # tokens computed before and in this step, of each request
    [(0, 8192)],
    [(4096, 2048)],
    [(0, 300)] * 16,
    [(0, 1000), (2500, 1000), (100, 77), (6000, 512)],
)
CONTEXTS, BATCHES = (300, 2048), (1, 8, 32, 128, 256)


@dataclass(frozen=True)
class Row:
    """One candidate on one case."""

    case: str
    operation: str
    candidate: tuple[int, ...]
    us: float = math.inf
    percent_of_floor: float = 0.0
    rate: float = 0.0
    unit: str = ""
    error: float = math.nan
    problem: str = ""


@contextmanager
def installed(operation: str, candidate: tuple[int, ...]) -> Iterator[Any]:
    """The launcher of the operation, with the candidate as its only configuration."""
    from plamo_ref.kernels.attention import triton_decode, triton_prefill
    from plamo_ref.kernels.launch import Config

    with ExitStack() as stack:

        def put(module: Any, **values: Any) -> None:
            for name, value in values.items():
                stack.enter_context(patch.object(module, name, value))

        if operation == "paged_prefill":
            rows, keys, warps, stages, pack = candidate
            table = (Config(up_to=1 << 30, block=rows, warps=warps, stages=stages, tile=keys),)
            put(triton_prefill, PREFILL_CONFIGS=table, WIDE_PREFILL_CONFIGS=table)
            if pack:
                put(triton_prefill, heads_of_a_tile=lambda share, rows: pack)
            yield triton_prefill
        else:
            keys, warps, stages, programs, least = candidate
            table = (Config(up_to=1 << 30, block=1, warps=warps, stages=stages, tile=keys),)
            put(triton_decode, DECODE_CONFIGS=table, WIDE_DECODE_CONFIGS=table)
            put(triton_decode, PROGRAMS=programs, KEYS_OF_A_PART=least)
            yield triton_decode


def cases(device: torch.device, shape: Shape, operation: str, dry: bool) -> Iterator[Case]:
    make = Maker(device, torch.float32 if dry else torch.bfloat16)
    if operation == "paged_prefill":
        for shares in [[(20, 30), (3, 5)]] if dry else SHARES:
            yield paged_case(make, shape, shares, shape.window)
        return
    for context in (50,) if dry else CONTEXTS:
        for batch in (2,) if dry else BATCHES:
            case = paged_case(make, shape, [(context - 1, 1)] * batch, shape.window)
            # A recorded decode step has tables wide enough for every request, whoever is in it.
            *before, table = case.arguments[:4]
            wide = table.new_zeros(batch, shape.window // shape.block_size + 2)
            wide[:, : table.shape[1]] = table[:, : wide.shape[1]]
            arguments = (*before, wide, *case.arguments[4:])
            yield replace(case, name=f"{batch} × {context}", arguments=arguments)


def twin(case: Case) -> Tensor:
    """The torch twin in float32, some of the queries at a time."""
    q, keys, values, table, first, lens, *rest = case.arguments
    q, keys, values = q.float(), keys.float(), values.float()
    if case.operation == "paged_decode":
        parts = [
            paged_decode(q[r], keys, values, table[r], first[r], lens[r], *rest)
            for r in torch.arange(len(q), device=q.device).split(32)
        ]
        return torch.cat(parts)
    starts, window = rest
    out = torch.empty_like(q)
    for row, (start, end) in enumerate(pairwise(starts.tolist())):
        for a in range(start, end, ROWS_OF_TWIN):
            b = min(a + ROWS_OF_TWIN, end)
            length, r = lens[row : row + 1] - (end - b), slice(row, row + 1)
            of_part = torch.tensor([0, b - a], device=q.device)
            arguments = (q[a:b], keys, values, table[r], first[r], length, of_part, window)
            out[a:b] = paged_prefill(*arguments)
    return out


def measure(
    case: Case, candidate: tuple[int, ...], truth: Tensor, ceilings: Ceilings | None
) -> Row:
    found = Row(case.name, case.operation, candidate)
    try:
        with installed(case.operation, candidate) as module:
            got = getattr(module, case.operation)(*case.arguments).float()
            error = float((got - truth).norm() / truth.norm())
            if not error < LIMIT:
                return replace(found, error=error, problem="WRONG")
            if ceilings is None:
                start = perf_counter()
                getattr(module, case.operation)(*case.arguments)
                return replace(found, error=error, us=1e6 * (perf_counter() - start), unit="dry")
            took = graph_seconds(case, module)
    except Exception as problem:  # whatever a compiler or a driver may raise
        return replace(found, problem=f"{type(problem).__name__}: {str(problem).strip()[:90]}")
    floor = ceilings.floor(case.moved_bytes, case.operations)
    rate, unit = ceilings.rate(case.moved_bytes, case.operations, took)
    return replace(
        found, us=1e6 * took, percent_of_floor=100 * floor / took, rate=rate, unit=unit, error=error
    )


def compile_one(job: tuple[str, str, tuple[int, ...]]) -> str:
    """In a process of its own, on tensors without content: then it lies in the cache folder."""
    name, operation, candidate = job
    shape = next(s for s in MODELS if s.name == name)
    heads, groups, size, window = shape.heads, shape.kv_heads, shape.size, shape.window

    def empty(*sizes: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device="meta")

    try:
        with installed(operation, candidate) as module:
            for batch in BATCHES if operation == "paged_decode" else (1,):
                q = empty(batch, heads, size, dtype=torch.bfloat16)
                cache = empty(9, shape.block_size, groups, size, dtype=torch.bfloat16)
                table = empty(batch, window // shape.block_size + 2)
                arguments = [q, cache, cache, table, empty(batch), empty(batch)]
                if operation == "paged_prefill":
                    arguments.append(empty(batch + 1))
                getattr(module, operation)(*arguments, window)
    except Exception as problem:
        return f"{job}: {type(problem).__name__}: {str(problem).strip()[:90]}"
    return ""


def compile_all(jobs: list[tuple[str, str, tuple[int, ...]]]) -> None:
    start = perf_counter()
    workers = min(len(jobs), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for problem in filter(None, pool.map(compile_one, jobs)):
            print(problem)
    print(f"{len(jobs)} candidates compiled in {perf_counter() - start:.0f} s", flush=True)


def show(shape: str, rows: list[Row]) -> None:
    """One case, the fastest first."""
    print(f"\n{shape} {rows[0].operation} {rows[0].case}")
    for row in sorted(rows, key=lambda row: row.us):
        label = "/".join(map(str, row.candidate))
        if row.problem:
            print(f"  {label:20} {row.problem} {row.error:.1e}")
        else:
            print(
                f"  {label:20} {row.us:9.1f} µs {row.rate:8.1f} {row.unit:8}"
                f"{row.percent_of_floor:6.1f} % of floor  error {row.error:.1e}"
            )
    sys.stdout.flush()


def summary(rows: list[Row]) -> None:
    """For each candidate, how many times the best time of a case it takes: mean and worst."""
    best: dict[str, float] = {}
    for row in rows:
        best[row.case] = min(best.get(row.case, math.inf), row.us)
    print(f"\n{rows[0].operation}, over {len(best)} cases: times the best (mean, worst)")
    lines = []
    for candidate in dict.fromkeys(row.candidate for row in rows):
        times = [row.us / best[row.case] for row in rows if row.candidate == candidate]
        if all(map(math.isfinite, times)):
            mean = math.exp(sum(map(math.log, times)) / len(times))
            lines.append((mean, max(times), "/".join(map(str, candidate))))
    for mean, worst, label in sorted(lines):
        print(f"  {label:20} {mean:6.3f} {worst:6.3f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["prefill", "decode"])
    parser.add_argument("--model", choices=[shape.name for shape in MODELS])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        sys.exit("attention_sweep.py needs a CUDA GPU; --dry runs its logic without one")
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is defined
    shapes = [replace(SMALL[0], heads=8, window=40)] if options.dry else list(MODELS)
    shapes = [s for s in shapes if options.dry or options.model in (None, s.name)]
    candidates = {"paged_prefill": PREFILL, "paged_decode": DECODE}
    candidates = {k: v for k, v in candidates.items() if (options.only or "") in k}
    device, ceilings = torch.device("cpu" if options.dry else "cuda"), None
    if not options.dry:
        compile_all([(s.name, o, c) for s in shapes for o, cs in candidates.items() for c in cs])
        ceilings = measure_ceilings(device, torch.bfloat16)
        print(torch.cuda.get_device_name(), torch.__version__, ceilings.row(), flush=True)
    everything: list[dict[str, Any]] = []
    for shape in shapes:
        for operation, configurations in candidates.items():
            found: list[Row] = []
            for case in cases(device, shape, operation, options.dry):
                truth = twin(case)
                rows = [measure(case, c, truth, ceilings) for c in configurations]
                show(shape.name, rows)
                found += rows
            summary(found)
            everything += [vars(row) | {"shape": shape.name} for row in found]
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
