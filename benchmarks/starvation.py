"""What others wait for a token while a long prompt arrives: `python benchmarks/starvation.py`.

Some requests decode; first nobody disturbs them, then a prompt comes, without and with a bound on
the time of a step (`max_step_time_ms`), so many times what a quiet step takes. A row: the gaps
between two tokens of those who decode, in milliseconds, and when the prompt had its first token.
Each row is printed as soon as it is known. On a GPU, with random weights:

    python benchmarks/starvation.py --shape 8b --decodes 32 --prompt 65000 --json starvation.json
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from plamo_ref.bench.report import report, write
from plamo_ref.bench.shapes import SHAPES, open_core
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.pace import Pace
from plamo_ref.sampling import SamplingParams

QUIET_STEPS, WARM_STEPS = 300, 40
SHORT = 64  # prompt tokens of those who decode
HEADER = ("bound_ms", "p50_ms", "p99_ms", "most_ms", "p99_over_quiet", "first_token_s", "steps")


class Watch:
    """Adds requests to a core, and notes when those who decode get their tokens."""

    def __init__(self, core: EngineCore, longest: int) -> None:
        self.core, self.longest = core, longest
        self._ids, self._vocab = random.Random(0), core.runner.model.config.vocab_size

    def add(self, length: int, output: int) -> Request:
        """Of fresh random tokens: nothing of it is found."""
        ids = [self._ids.randrange(5, self._vocab) for _ in range(length)]
        params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
        return self.core.add(ids, params)

    def decoding(self, count: int) -> list[Request]:
        """So many requests that have their first token, and many to go."""
        requests = [self.add(SHORT, self.longest - SHORT) for _ in range(count)]
        while not all(request.output_ids for request in requests):
            self.core.step()
        for _ in range(WARM_STEPS):
            self.core.step()
        return requests

    def gaps(self, requests: list[Request]) -> Iterator[list[float]]:
        """Seconds since their last token of those who get one in a step, step by step."""
        last = dict.fromkeys(requests, time.perf_counter())
        while True:
            moved = self.core.step()
            now = time.perf_counter()
            gaps = [now - last[r] for r in moved if r in last]
            last |= {r: now for r in moved if r in last}
            yield gaps

    def disturbed(self, requests: list[Request], length: int) -> tuple[list[float], float, int]:
        """The gaps until a prompt that comes now has a token, when that was, and after how many
        steps."""
        begun, steps, seen = time.perf_counter(), 0, list[float]()
        gaps = self.gaps(requests)
        prompt = self.add(length, 1)
        while prompt.status != "finished":
            seen += next(gaps)
            steps += 1
        return seen, time.perf_counter() - begun, steps


def row(mode: str, gaps: list[float], bound: float | None, **more: Any) -> dict[str, Any]:
    milliseconds = np.array(gaps) * 1e3
    p50, p99 = np.quantile(milliseconds, (0.5, 0.99))
    times = {"p50_ms": p50, "p99_ms": p99, "most_ms": milliseconds.max()}
    rounded = {name: round(float(value), 2) for name, value in times.items()}
    return {"mode": mode, "bound_ms": bound and round(bound * 1e3, 2), **rounded, **more}


def measure(core: EngineCore, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    longest = min(core.max_model_len, options.prompt + 64)
    watch = Watch(core, longest)
    requests = watch.decoding(options.decodes)
    stepwise, quiet = watch.gaps(requests), list[float]()
    for _ in range(QUIET_STEPS):
        quiet += next(stepwise)
    first = row("quiet", quiet, None)
    yield first
    widest = Pace.of(EngineConfig(max_step_time_ms=1), core.cache)
    assert widest is not None
    step = float(np.median(quiet))
    paces = [("no bound", None)]
    paces += [
        (f"{ratio:g} × quiet", Pace(ratio * step, widest.least, widest.window))
        for ratio in options.ratios
    ]
    for mode, pace in paces:
        core.queues.pace = pace
        watch.disturbed(requests, max(1, options.prompt // 8))  # compiles, records, learns
        gaps, seconds, steps = watch.disturbed(requests, options.prompt)
        bound = None if pace is None else pace.seconds
        found = row(mode, gaps, bound, first_token_s=round(seconds, 3), steps=steps)
        yield found | {"p99_over_quiet": round(found["p99_ms"] / first["p99_ms"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="random weights of this shape")
    parser.add_argument("--decodes", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=4000, help="tokens")
    parser.add_argument("--ratios", type=float, nargs="+", default=[1.5, 2.0])
    parser.add_argument("--tokens", type=int, default=2048, help="max_num_batched_tokens")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engine = EngineConfig(
        max_num_batched_tokens=options.tokens,
        max_num_seqs=options.decodes + 1,
        max_model_len=options.prompt + 64,
        enable_prefix_caching=False,
    )
    core, _ = open_core(options.model, options.shape, engine)
    print(f"{'':14}" + "".join(f"{name:>16}" for name in HEADER), flush=True)
    rows = []
    for found in measure(core, options):
        rows.append({"decodes": options.decodes, "prompt": options.prompt, **found})
        cells = ("" if found.get(name) is None else f"{found[name]:g}" for name in HEADER)
        print(f"{found['mode']:14}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
    if options.json:
        write(report("starvation", rows), options.json)


if __name__ == "__main__":
    main()
