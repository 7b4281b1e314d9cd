"""Why a pipeline waits, on a CPU: `python benchmarks/pipeline.py`.

    python benchmarks/pipeline.py [--stages 2] [--stage-ms 50] [--host-ms 20] [--seats 8]
        [--tokens 40] [--mixed 256] [--mixed-seats 256] [--json FILE]

First with a clock on the wall. Ranks are threads whose stages sleep for `--stage-ms` instead of
computing, whatever is in the step, and the host sleeps for `--host-ms` when a step has landed, as
if it had texts to write: so waits are seen apart from work. Throughput is over that of one engine
whose host costs nothing and which has a stage's seats: all a GPU's time is spent in stages there.

Then with a clock of a model: the mixed workload, scheduled by the real core, in rounds that take
what a stage of the 8B shape takes. 4.9 ms of reading for the whole model or 0.029 ms for a prompt's
token, whichever is more, and 0.038 ms for a decode, come from the ledger's rows of one H200; so do
0.8 ms of the host and 0.011 ms for each request. Each kind of core once waits for the host in each
round and once overlaps. It says how much is possible before a GPU is asked.

Invariant: both are the real `PipelinedCore`; only the ranks below it are stand-ins.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch, Room
from plamo_ref.bench.report import report, write
from plamo_ref.bench.simulator import Trace
from plamo_ref.bench.stub_runner import StubRunner
from plamo_ref.engine.batching import BatchPlan
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.holding import AttentionGroup, Copy
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.parallel.driver import SharedRunner
from plamo_ref.parallel.pipeline import PipelinedCore
from plamo_ref.proof.lab import lab_config, lab_plan, random_tensors
from plamo_ref.proof.ranks import LabRunner, threaded_runner
from plamo_ref.sampling import SamplingParams

Busy = list[tuple[float, float]]  # begin and end, in seconds


# --- a clock on the wall --------------------------------------------------------------------------


def sleeping(seats: int, stages: int, seconds: float) -> tuple[LabRunner, MemoryPlan, list[Busy]]:
    """Ranks that sleep; when each stage was busy, the first stage first."""
    config = lab_config(mamba_num_heads=4)
    kinds = {kind for kind in config.layer_kinds if kind != "mamba"}
    blocks = dict.fromkeys(kinds, 2 + 100 * seats)
    plan = lab_plan(config, block_size=4, blocks=blocks, slots=seats, max_num_seqs=seats)
    runner = threaded_runner(config, random_tensors(config), plan, 1, stages)
    busy: list[Busy] = [[] for _ in range(stages)]

    def sleep(spent: Busy) -> Callable[..., Tensor]:
        def run(batch: ForwardBatch, rows: Any) -> Tensor:
            begun = time.perf_counter()
            time.sleep(seconds)
            spent.append((begun, time.perf_counter()))
            return torch.zeros(len(batch.token_ids[rows]), config.vocab_size)

        return run

    for rank, spent in zip(runner.ranks, reversed(busy), strict=True):
        rank.run = sleep(spent)  # type: ignore[method-assign]
    return runner, plan, busy


def on_the_wall(overlap: bool, args: argparse.Namespace) -> tuple[float, list[float], list[Busy]]:
    """Seconds for every token of all seats' requests, and how much of them each stage slept."""
    seats = args.seats * args.stages
    runner, plan, busy = sleeping(seats, args.stages, args.stage_ms / 1e3)
    settings = {"pipeline_parallel_size": args.stages, "max_num_seqs": seats, "block_size": 4}
    core = PipelinedCore(runner, plan, EngineConfig(device="cpu", overlap=overlap, **settings))
    core.observers.append(lambda *_: time.sleep(args.host_ms / 1e3))
    params = SamplingParams(temperature=0, max_tokens=args.tokens, ignore_eos=True)
    for number in range(seats):
        core.add([1 + number, 2, 3], params)
    started = time.perf_counter()
    while core.has_work:
        core.step()
    spent = time.perf_counter() - started
    runner.close()
    shares = [sum(end - begin for begin, end in each) / spent for each in busy]
    return spent, shares, busy


def gantt(busy: list[Busy], rounds: int, columns: int = 72) -> str:
    """Some rounds from the middle: when each stage was busy."""
    first = busy[0][len(busy[0]) // 2][0]
    last = busy[0][len(busy[0]) // 2 + rounds][0]
    lines = []
    for stage, spans in enumerate(busy):
        line = [" "] * columns
        for number, (begin, end) in enumerate(spans):
            places = [int((t - first) / (last - first) * columns) for t in (begin, end)]
            for place in range(max(0, places[0]), min(columns, places[1])):
                line[place] = "AB"[number % 2]
        lines.append(f"  stage {stage} |{''.join(line)}|")
    return "\n".join(lines)


# --- a model's clock ------------------------------------------------------------------------------


@dataclass
class Load:
    """What a step gives a stage to do."""

    decodes: int
    prompt_tokens: int

    def seconds(self, stages: int) -> float:
        return (max(4.9, 0.029 * self.prompt_tokens) + 0.038 * self.decodes) / stages / 1e3

    @property
    def of_host(self) -> float:
        return (0.8 + 0.011 * self.decodes) / 1e3


class Stub(SharedRunner):
    """Stages that compute nothing, and note what they were given."""

    def __init__(self, vocab_size: int, stages: int) -> None:
        one = StubRunner(vocab_size, lambda tokens, requests: 0.0)
        self.model, self.caches, self.recordings = one.model, one.caches, None
        self.rounds: list[list[Load | None]] = []
        self._inside: list[BatchPlan | None] = [None] * stages
        self._vocab_size = vocab_size

    def place(self, room: Room) -> ForwardBatch:
        return ForwardBatch.empty(room, torch.device("cpu"))

    def start_round(
        self, plan: BatchPlan | None, copies: list[Copy]
    ) -> Callable[[], Tensor | None]:
        copies.clear()
        self._inside = [plan, *self._inside[:-1]]
        self.rounds.append([None if p is None else load_of(p.batch.room) for p in self._inside])
        last = self._inside[-1]
        rows = 0 if last is None else len(last.batch.token_ids[last.rows])
        return lambda: None if last is None else torch.zeros(rows, self._vocab_size)

    def drain(self) -> None:
        pass

    def check(self) -> None:
        pass


def load_of(room: Room) -> Load:
    return Load(room.decodes, room.tokens)


def scheduled(core: EngineCore, trace: Trace) -> None:
    for number, request in enumerate(trace.requests):
        params = SamplingParams(temperature=0, max_tokens=request.output_len, ignore_eos=True)
        core.add([number] * request.prompt_len, params)
    while core.has_work:
        core.step()


def settings(args: argparse.Namespace, **more: Any) -> EngineConfig:
    budget = {"max_num_batched_tokens": 8192, "max_num_seqs": args.mixed_seats}
    return EngineConfig(device="cpu", **budget, **more)


def ample(trace: Trace, engine: EngineConfig) -> MemoryPlan:
    blocks = 2 + sum(-(-(r.prompt_len + r.output_len) // 16) for r in trace.requests)
    group = AttentionGroup("full", None)
    return MemoryPlan((group,), {"full": blocks}, {"full": 0}, 0, 0, 16, engine.seats, 0)


def of_one(trace: Trace, args: argparse.Namespace) -> float:
    """Seconds of one GPU, whose host is never waited for."""
    loads: list[Load] = []

    class Noting(StubRunner):
        def run(self, batch: ForwardBatch, rows: Any) -> Tensor:
            loads.append(load_of(batch.room))
            return super().run(batch, rows)

    engine = settings(args)
    runner = Noting(len(trace.requests), lambda tokens, requests: 0.0)
    scheduled(EngineCore(runner, ample(trace, engine), engine), trace)
    return sum(load.seconds(1) for load in loads)


def of_pipeline(trace: Trace, overlap: bool, args: argparse.Namespace) -> tuple[float, list[float]]:
    """Seconds of a pipeline, and the share of them in which each stage computes."""
    engine = settings(args, pipeline_parallel_size=args.stages, overlap=overlap)
    runner = Stub(len(trace.requests), args.stages)
    scheduled(PipelinedCore(runner, ample(trace, engine), engine), trace)
    return clocked(runner.rounds, overlap)


def clocked(rounds: list[list[Load | None]], overlap: bool) -> tuple[float, list[float]]:
    """A round begins in a stage when the stage before and the last one, whose tokens all wait for,
    are through with the round before, and when the host has given it."""
    stages = len(rounds[0])
    ends, busy, host = [0.0] * stages, [0.0] * stages, 0.0
    for loads in rounds:
        before = list(ends)
        if not overlap:
            host = max(host, before[-1])
        host += loads[0].of_host if loads[0] is not None else 0.0
        for stage, load in enumerate(loads):
            spent = 0.0 if load is None else load.seconds(stages)
            begin = max(before[stage], before[stage - 1] if stage else 0.0, before[-1], host)
            ends[stage], busy[stage] = begin + spent, busy[stage] + spent
        if overlap:
            host = max(host, before[-1])  # it reads the tokens of the round before
    return max(ends), [each / max(ends) for each in busy]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--stage-ms", type=float, default=50.0)
    parser.add_argument("--host-ms", type=float, default=20.0)
    parser.add_argument("--seats", type=int, default=8, help="of one stage's step")
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--mixed", type=int, default=256)
    parser.add_argument("--mixed-seats", type=int, default=256)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for overlap in (False, True):
        spent, shares, busy = on_the_wall(overlap, args)
        one = args.stages**2 * args.tokens * args.stage_ms / 1e3
        row = {"clock": "wall", "overlap": overlap, "ms": round(spent * 1e3, 1)}
        row |= {"of_one": round(one / spent, 3), "busy": [round(share, 3) for share in shares]}
        rows.append(row)
        print(row, gantt(busy, 6), sep="\n", flush=True)
    trace = Trace.mixed(args.mixed)
    one = of_one(trace, args)
    print(f"the mixed workload on one GPU, by the model: {one:.2f} s")
    for overlap in (False, True):
        spent, shares = of_pipeline(trace, overlap, args)
        row = {"clock": "model", "overlap": overlap, "ms": round(spent * 1e3, 1)}
        row |= {"of_one": round(one / spent, 3), "busy": [round(share, 3) for share in shares]}
        rows.append(row)
        print(row, flush=True)
    if args.json:
        write(report("pipeline", rows), args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
