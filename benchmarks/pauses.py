"""Stops of the engine under the mixed workload: what the collector of garbage and the host take.

    python benchmarks/pauses.py [--shape 8b] [--minutes 10] [--requests 256] [--scale 1.0]
        [--no-freeze] [--json FILE]

Requests of the mixed workload go through `LLM.generate`, call after call. Between the ends of two
steps of a call lie the model, waited for or computed here, and the host: scheduling, batches, text.
A collection is timed by the collector's own word. The host's share counts as a stop by the
processor time of this thread too: what only the clock saw was taken by other processes. The first
call of all, in which kernels are compiled and steps recorded, is not counted.

Invariant: the model's time is in no stop; every gap between two steps is looked at.
"""

import argparse
import gc
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving import model_folder

from plamo_ref import LLM, SamplingParams
from plamo_ref.bench.report import report, write
from plamo_ref.bench.simulator import Trace
from plamo_ref.bench.workloads import percentiles, prompt_ids
from plamo_ref.engine.flight import Flight

STOP = 0.03  # seconds


@dataclass
class Watch:
    """What came between the ends of steps, in seconds."""

    model: list[float] = field(default_factory=list)  # of each gap
    host: list[float] = field(default_factory=list)  # … by the clock
    processor: list[float] = field(default_factory=list)  # … of this thread, in the host's part
    collections: list[float] = field(default_factory=list)
    generations: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._in_model = self._of_thread = 0.0  # since the last end of a step
        self._last: tuple[float, float] | None = None
        self._began = 0.0

    def new_call(self) -> None:
        """What comes before the first step of a call is no stop of any other's."""
        self._last = None

    def timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """This is the model's."""

        def run(*args: Any) -> Any:
            began, of_thread = time.perf_counter(), time.thread_time()
            try:
                return work(*args)
            finally:
                self._in_model += time.perf_counter() - began
                self._of_thread += time.thread_time() - of_thread

        return run

    def ending(self, step: Callable[[], Any]) -> Callable[[], Any]:
        """A step, at whose end the clock is read."""

        def run() -> Any:
            moved = step()
            now = time.perf_counter(), time.thread_time()
            if self._last is not None:
                whole, of_thread = now[0] - self._last[0], now[1] - self._last[1]
                self.model.append(self._in_model)
                self.host.append(whole - self._in_model)
                self.processor.append(of_thread - self._of_thread)
            self._last, self._in_model, self._of_thread = now, 0.0, 0.0
            return moved

        return run

    def hear(self, phase: str, about: dict[str, int]) -> None:
        """For `gc.callbacks`."""
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.collections.append(time.perf_counter() - self._began)
            self.generations[about["generation"]] += 1

    def row(self) -> dict[str, Any]:
        steps, pairs = len(self.host), list(zip(self.host, self.processor, strict=True))
        return {
            "steps": steps,
            "collections": {str(n): self.generations[n] for n in range(3)},
            "collections_per_1000_steps": round(1e3 * len(self.collections) / max(1, steps), 2),
            "longest_collection_ms": _ms(max(self.collections, default=0.0)),
            "stops_of_the_collector": sum(each >= STOP for each in self.collections),
            "host_ms": percentiles(self.host),
            "longest_host_ms": _ms(max(self.host, default=0.0)),
            "longest_host_processor_ms": _ms(max(self.processor, default=0.0)),
            "stops_of_the_host": sum(min(pair) >= STOP for pair in pairs),
            "taken_by_others": sum(clock >= STOP > own for clock, own in pairs),
            "model_ms": percentiles(self.model),
        }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--shape")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--requests", type=int, default=256, help="of a call")
    parser.add_argument("--scale", type=float, default=1.0, help="of all lengths")
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--memory-bytes", type=int)
    parser.add_argument("--no-freeze", action="store_true", help="nothing is set aside")
    parser.add_argument("--json", type=Path, help="write the result here")
    asked = parser.parse_args()
    with model_folder(asked.model, asked.shape) as (folder, settings):
        settings |= {
            "max_num_seqs": asked.max_num_seqs,
            "max_num_batched_tokens": asked.max_num_batched_tokens,
            "memory_bytes": asked.memory_bytes,
            "max_model_len": round(asked.scale * 1536) + 8,
        }
        with LLM(folder, **settings) as llm:
            if asked.no_freeze:
                gc.unfreeze()
            made = {"set_aside": gc.get_freeze_count()} | watched(llm, asked).row()
    print(made, flush=True)
    if asked.json is not None:
        write(report("pauses", [made]), asked.json)


def watched(llm: LLM, asked: argparse.Namespace) -> Watch:
    """Call after call, for so many minutes."""
    watch, vocab = Watch(), llm.model_config.vocab_size

    def call(number: int) -> None:
        trace = Trace.mixed(asked.requests, asked.scale, seed=number)
        first = 1000 * number
        prompts = [prompt_ids(first + i, r.prompt_len, vocab) for i, r in enumerate(trace.requests)]
        params = [
            SamplingParams(temperature=0, max_tokens=r.output_len, ignore_eos=True)
            for r in trace.requests
        ]
        watch.new_call()
        llm.generate(prompts, params, use_tqdm=False)

    call(0)
    core = llm.core
    core.runner.run = watch.timed(core.runner.run)  # type: ignore[method-assign]
    if core.runner.device.type != "cpu":
        # What is launched is waited for when it lands; and where a long prompt's kernels fill the
        # queue of the device, launching waits as well.
        Flight.wait = watch.timed(Flight.wait)  # type: ignore[method-assign]
    core.step = watch.ending(core.step)  # type: ignore[method-assign]
    gc.callbacks.append(watch.hear)
    end = time.monotonic() + 60 * asked.minutes
    for number in itertools.count(1):
        call(number)
        print(number, watch.row(), flush=True)
        if time.monotonic() >= end:
            break
    gc.callbacks.remove(watch.hear)
    return watch


if __name__ == "__main__":
    main()
