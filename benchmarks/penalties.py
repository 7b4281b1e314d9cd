"""What penalties, biases and masks cost a step: from tables on the device, and by `adjust`.

    python benchmarks/penalties.py [--batch 32] [--context 32000] [--vocab 100032] [--device D]
        [--json FILE]

Each row is one wish that all requests of a batch have. `step_ms` is what a step takes with the
tables when somebody waits for it, `host_ms` what the host spends before it goes on, `first_ms` the
step in which the rows are filled, `plain_ms` the twin, which reads every context anew. `floor_us`:
the logits read and written once and the tables read once, at the rate at which the device copies.

Invariant: what is timed gives, bit by bit, what the twin gives.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plamo_ref.bench.report import report, write
from plamo_ref.engine.fast.adjust_tables import AdjustTables
from plamo_ref.sampling import GuidedParams, SamplingParams
from plamo_ref.sampling.adjust import RowContext, adjust

STEPS = 20
LONGEST = 1 << 20


class EveryOther:
    """A grammar that allows every other token: the cost of a mask without that of making one."""

    finished = complete = False

    def __init__(self, vocab_size: int) -> None:
        self._allowed = np.arange(vocab_size) % 2 == 0

    def mask(self, stop_ids: Any) -> np.ndarray:
        return self._allowed

    def accept(self, token: int) -> None:
        pass


@dataclass(frozen=True)
class Unread:
    """The tokens of the step before, which are still on the device."""

    tokens: Tensor
    requests: range


def wishes(vocab_size: int) -> dict[str, tuple[SamplingParams, int]]:
    """Name → the parameters, and bytes of tables that a token of the vocabulary then costs."""
    most = {"max_tokens": LONGEST}
    bias = dict.fromkeys(range(int(0.9 * vocab_size)), 0.1)
    early = {"min_tokens": LONGEST, "stop_token_ids": [2, 3]}
    guided = GuidedParams(regex=".*")
    three = {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.1}
    return {
        "nothing": (SamplingParams(**most), 0),
        "repetition_penalty": (SamplingParams(repetition_penalty=1.1, **most), 4),
        "all three penalties": (SamplingParams(**three, **most), 4),
        f"logit_bias of {len(bias):,}": (SamplingParams(logit_bias=bias, **most), 4),
        "min_tokens": (SamplingParams(**early, **most), 1),
        "a grammar": (SamplingParams(guided=guided, **most), 1),
        "everything": (
            SamplingParams(**three, logit_bias=bias, guided=guided, **early, **most),
            10,
        ),
    }


def seconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Until the host goes on, and until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    call()
    on = time.perf_counter() - start
    synchronize(device)
    return on, time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    params: SamplingParams, prompts: Sequence[tuple[int, ...]], logits: Tensor
) -> dict[str, float]:
    """Times of one wish, whose requests each get a token a step that the host does not see."""
    batch, vocab_size, tables = len(prompts), logits.shape[1], AdjustTables()
    guide = EveryOther(vocab_size) if params.guided else None
    keys, outputs = range(batch), [[] for _ in prompts]  # type: list[list[int]]
    unread = Unread(torch.arange(batch, device=logits.device), range(batch))

    def contexts(late: int) -> list[RowContext]:
        rows = zip(prompts, outputs, strict=True)
        stops = params.stop_token_ids
        return [RowContext(params, p, o, stops, guide, len(o) + late) for p, o in rows]

    _, first = seconds(lambda: tables.adjust(logits, keys, contexts(0)), logits.device)
    times = []
    for _ in range(STEPS):
        made = contexts(1)
        times.append(
            seconds(lambda: tables.adjust(logits, keys, made, unread), logits.device)  # noqa: B023
        )
        for token, output in enumerate(outputs):
            output.append(token)
    got = tables.adjust(logits, keys, contexts(0))
    made = contexts(0)
    _, plain = seconds(lambda: adjust(logits, made), logits.device)
    if not torch.equal(got, adjust(logits, made)):
        raise AssertionError(f"{params}: the tables do not give what the twin gives")
    host, step = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return {
        "step_ms": round(step, 3),
        "host_ms": round(host, 3),
        "first_ms": round(1e3 * first, 2),
        "plain_ms": round(1e3 * plain, 2),
    }


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device)[1] for _ in range(10)]
    return 2 * source.numel() / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=32_000, help="tokens of each prompt")
    parser.add_argument("--vocab", type=int, default=100_032)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    logits = torch.randn(arguments.batch, arguments.vocab, device=device).to(dtype)
    draw = random.Random(0)
    prompts = [
        tuple(draw.choices(range(arguments.vocab), k=arguments.context))
        for _ in range(arguments.batch)
    ]
    rate, rows = copy_rate(device), []
    for name, (params, table_bytes) in wishes(arguments.vocab).items():
        moved = logits.numel() * (dtype.itemsize + 4 + table_bytes) if params.changes_logits else 0
        floor = round(1e6 * moved / rate, 1)
        rows.append({"wish": name, "batch": arguments.batch, "context": arguments.context})
        rows[-1] |= {"floor_us": floor, **measure(params, prompts, logits)}
        print(rows[-1], flush=True)
    if arguments.json is not None:
        write(report("penalties", rows), arguments.json)


if __name__ == "__main__":
    main()
