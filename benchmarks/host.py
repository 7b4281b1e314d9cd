"""What the host takes of a decode step: in the core's loop, in `LLM.generate`, in `AsyncLLM`.

    python benchmarks/host.py [--shape 1b] [--batch 256] [--output-len 256] [--repeat 3]
        [--stub] [--json FILE]

A step is what OUTPUT tokens take more than one token does, divided by OUTPUT - 1, of the fastest of
`repeat` runs. With `--stub` the model computes nothing (it says token 5), so a step is Python
alone, and CPU seconds of this thread are counted: a busy machine does not count. `AsyncLLM` has its
engine in another process, where nothing can be put in the model's place: it is left out then.

Invariant: all three get the same prompts and parameters, in one process, one after the other.
"""

import argparse
import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from serving import model_folder

from plamo_ref import LLM, SamplingParams
from plamo_ref.bench.report import report, write
from plamo_ref.bench.workloads import prompt_ids
from plamo_ref.engine.core import EngineCore
from plamo_ref.remote.async_llm import AsyncLLM

PROMPT = 128  # tokens


def params_of(output_len: int, stop: str | None = None) -> SamplingParams:
    return SamplingParams(
        temperature=0, max_tokens=output_len, ignore_eos=True, stop=[stop] if stop else []
    )


def of_core(core: EngineCore, prompts: list[list[int]], output_len: int) -> None:
    for prompt in prompts:
        core.add(prompt, params_of(output_len))
    while core.has_work:
        core.step()


def stub(core: EngineCore, batch: int) -> None:
    """A model that takes no time."""
    logits = torch.zeros(batch, 8)
    logits[:, 5] = 1

    def run(_: object, rows: Any) -> torch.Tensor:
        return logits[: rows.stop if isinstance(rows, slice) else len(rows)]

    core.runner.run = run  # type: ignore[method-assign, assignment]


def step_seconds(
    work: Callable[[int], object], output_len: int, repeat: int, clock: Callable[[], float]
) -> float:
    """Of the fastest runs."""

    def seconds(length: int) -> float:
        began = clock()
        work(length)
        return clock() - began

    work(min(8, output_len))
    fastest = [min(seconds(n) for _ in range(repeat)) for n in (1, output_len)]
    return (fastest[1] - fastest[0]) / (output_len - 1)


def row(way: str, step: float, core: float, batch: int) -> dict[str, Any]:
    made = {
        "way": way,
        "batch": batch,
        "step_ms": round(step * 1e3, 4),
        "beyond_core_us_per_token": round((step - core) * 1e6 / batch, 3),
        "beyond_core_percent": round(100 * (step / core - 1), 2),
    }
    print(made, flush=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--shape")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--state-dtype", default="auto")
    parser.add_argument("--stub", action="store_true")
    parser.add_argument("--json", type=Path, help="write the result here")
    asked = parser.parse_args()
    with model_folder(asked.model, asked.shape) as (folder, settings):
        settings |= {
            "max_num_seqs": asked.batch,
            "max_num_batched_tokens": 16384,
            "max_model_len": PROMPT + asked.output_len + 1,
            "state_dtype": asked.state_dtype,
            "enable_prefix_caching": False,
        }
        if asked.stub:
            settings |= {"device": "cpu", "memory_bytes": 1 << 31, "overlap": True}
        rows = list(measure(folder, settings, asked))
    if asked.json is not None:
        write(report("host", rows), asked.json)


def measure(folder: str, settings: dict[str, Any], asked: argparse.Namespace) -> Any:
    clock = time.thread_time if asked.stub else time.perf_counter
    numbers = (asked.output_len, asked.repeat, clock)
    with LLM(folder, **settings) as llm:
        vocab = llm.model_config.vocab_size
        prompts = [prompt_ids(i, PROMPT, vocab) for i in range(asked.batch)]
        if asked.stub:
            stub(llm.core, asked.batch)
        core = step_seconds(lambda n: of_core(llm.core, prompts, n), *numbers)
        yield row("core", core, core, asked.batch)
        ways: dict[str, Callable[[int], object]] = {
            "LLM.generate": lambda n: llm.generate(prompts, params_of(n), use_tqdm=False),
            "LLM.generate, a stop string": lambda n: llm.generate(
                prompts, params_of(n, "never there"), use_tqdm=False
            ),
            "LLM.stream": lambda n: list(llm.stream(prompts, params_of(n))),
        }
        for way, work in ways.items():
            yield row(way, step_seconds(work, *numbers), core, asked.batch)
    if not asked.stub:
        step = asyncio.run(of_async(folder, settings, prompts, asked))
        yield row("AsyncLLM.generate", step, core, asked.batch)


async def of_async(
    folder: str, settings: dict[str, Any], prompts: list[list[int]], asked: argparse.Namespace
) -> float:
    fastest = []
    async with AsyncLLM(folder, **settings) as llm:
        await llm.generate(prompts, params_of(8))
        for length in (1, asked.output_len):
            took = []
            for _ in range(asked.repeat):
                began = time.perf_counter()
                await llm.generate(prompts, params_of(length))
                took.append(time.perf_counter() - began)
            fastest.append(min(took))
    return (fastest[1] - fastest[0]) / (asked.output_len - 1)


if __name__ == "__main__":
    main()
