"""Decode steps and prompts, timed on an open engine and held against floors and bare products.

Invariant: a time is a median of several runs of the same requests, after a first one that pays for
what later ones find ready. A decode step is what OUTPUT tokens take more than one token does,
divided by OUTPUT - 1: prompts, queues and the first token cancel.
"""

from dataclasses import dataclass
from statistics import median
from typing import Any

from plamo_ref.bench.floors import (
    decode_bytes,
    decode_floor,
    in_e4m3,
    prefill_floor,
    trace_floor,
)
from plamo_ref.bench.kernels.ceilings import Ceilings, measure_ceilings
from plamo_ref.bench.products import time_products
from plamo_ref.bench.simulator import Trace
from plamo_ref.bench.workloads import run, uniform
from plamo_ref.budget import prefill_flops
from plamo_ref.engine.core import EngineCore


@dataclass(frozen=True)
class Bench:
    """An engine, and what its machine reached when it was asked."""

    core: EngineCore
    ceilings: Ceilings
    products: bool = True  # time the bare products as well

    @classmethod
    def of(cls, core: EngineCore, products: bool = True) -> "Bench":
        model = core.runner.model
        weight, fp8 = model.embedding, in_e4m3(model.config)
        return cls(core, measure_ceilings(weight.device, weight.dtype, fp8=fp8), products)

    @property
    def items(self) -> tuple[int, int, int | None]:
        """Bytes of a number in activations, states, and, if it is another, keys and values."""
        config, dtype = self.core.config, self.core.runner.model.embedding.dtype
        kv_item = None if config.kv_cache_dtype == "auto" else 1
        return dtype.itemsize, config.resolve_state_dtype(dtype).itemsize, kv_item

    def decode(self, batch: int, prompt: int, output: int, repeat: int) -> dict[str, Any]:
        """A row: milliseconds of a decode step of `batch` requests."""
        model = self.core.runner.model
        runs = step_seconds(self.core, batch, prompt, output, repeat)
        step, spread = median(runs), max(runs) - min(runs)
        length = prompt + output // 2  # the mean over the steps
        item, state_item, kv_item = self.items
        sizes, own = (item, state_item), (kv_item, self.core.config.state_replay)
        floor = decode_floor(model.config, batch, length, *sizes, self.ceilings, *own)
        moved = decode_bytes(model.config, batch, length, *sizes, *own)
        row = {
            "batch": batch,
            "step_ms": round(step * 1e3, 3),
            "spread_ms": round(spread * 1e3, 3),
            "tokens_per_s": round(batch / step, 1),
            "gb_per_s": round(moved / step / 1e9, 1),
            "floor_ms": round(floor * 1e3, 3),
            "percent_of_floor": round(100 * floor / step, 1),
        }
        if self.products:
            row["products_ms"] = round(time_products(model, batch, head=True) * 1e3, 3)
        return row | self.ceilings.row()

    def prefill(self, batch: int, length: int, repeat: int) -> dict[str, Any]:
        """A row: prompt tokens per second of `batch` prompts of `length` tokens."""
        model, tokens = self.core.runner.model, batch * length
        trace = uniform(batch, length, 1)
        run(self.core, trace)
        seconds = median(run(self.core, trace).seconds for _ in range(repeat))
        item = model.embedding.dtype.itemsize
        floor = prefill_floor(model.config, batch, length, item, self.ceilings)
        operations = tokens * prefill_flops(model.config, length)
        row = {
            "batch": batch,
            "prompt_len": length,
            "seconds": round(seconds, 5),
            "tokens_per_s": round(tokens / seconds, 1),
            "tflop_per_s": round(operations / seconds / 1e12, 3),
            "floor_tokens_per_s": round(tokens / floor, 1),
            "percent_of_floor": round(100 * floor / seconds, 1),
        }
        if self.products:
            at_once = min(tokens, self.core.config.step_tokens)
            bare = time_products(model, at_once, head=False)
            row["products_tokens_per_s"] = round(at_once / bare, 1)
        return row | self.ceilings.row()

    def trace(self, trace: Trace, repeat: int) -> dict[str, Any]:
        """A row: the whole trace, the median of `repeat` runs."""
        warm_up(self.core, trace)
        runs = sorted((run(self.core, trace) for _ in range(repeat)), key=lambda r: r.seconds)
        middle = runs[(len(runs) - 1) // 2]  # of two, the faster: a run, not an average of runs
        row = middle.row() | {"all_seconds": [round(r.seconds, 3) for r in runs]}
        if max(job.arrival for job in trace.requests) == 0:  # else arrivals decide
            model, (item, state_item, kv_item) = self.core.runner.model.config, self.items
            given = (trace, self.core.config, item, state_item, self.ceilings, kv_item)
            floor = trace_floor(model, *given)
            row["floor_seconds"] = round(floor, 3)
            row["percent_of_floor"] = round(100 * floor / middle.seconds, 1)
        return row | self.ceilings.row()


def step_seconds(
    core: EngineCore, batch: int, prompt: int, output: int, repeat: int
) -> list[float]:
    """Seconds of a decode step in each run: what it takes more than first tokens usually do."""
    short, long = uniform(batch, prompt, 1), uniform(batch, prompt, output)
    for trace in (short, uniform(batch, prompt, min(8, output))):
        run(core, trace)
    firsts = [run(core, short).seconds for _ in range(repeat)]
    whole = [run(core, long).seconds for _ in range(repeat)]
    first = median(firsts)
    return [(seconds - first) / (output - 1) for seconds in whole]


def warm_up(core: EngineCore, trace: Trace) -> None:
    """Let the engine meet every size of batch that the trace can lead to.

    As many requests as can run, of outputs of all lengths: the batch shrinks through all sizes.
    """
    seats = min(core.config.seats, len(trace.requests))
    longest = max(job.prompt_len for job in trace.requests)
    run(core, Trace.of((longest, 2), *((4, 2 + i) for i in range(seats - 1))))
