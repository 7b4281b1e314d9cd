"""What one arena buys when the traffic changes: the same bytes as two rooms, and as pages.

    python benchmarks/arena.py [--gib 6 12 24] [--json FILE]

The shape is the 8B's, the core is the real one, its runner computes nothing and only keeps the time
(see plamo_ref/bench/simulator.py): a step takes 8 ms and 50 µs for each token. Four hours of a day
follow each other in one engine: questions about long documents, which want blocks; a crowd of
short chats, which wants states, to run and to keep; documents again; and strangers with long
prompts and answers, of which nothing can be found. Clients ask again when they have their answer.
Each hour begins with what the one before has left.

Invariant: both memories get the very same texts, and all of them are answered.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from plamo_ref.bench.prefix import ids
from plamo_ref.bench.report import report, write
from plamo_ref.bench.shapes import SHAPES
from plamo_ref.bench.stub_runner import StubRunner
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.planner import plan_memory
from plamo_ref.engine.record import StepRecord
from plamo_ref.sampling import SamplingParams

VOCAB = 4_000
STEP, TOKEN = 0.008, 50e-6  # seconds


@dataclass
class Client:
    """Asks one thing after another; a chat goes on with what was answered."""

    asks: list[list[int]]  # what is new each time
    out: int
    is_chat: bool
    text: list[int] = field(default_factory=list)

    def next(self) -> list[int]:
        new = self.asks.pop(0)
        return self.text + new if self.is_chat else new


def documents(seed: int) -> list[Client]:
    """24 clients with six questions each, about twelve documents of 4,000 to 8,000 tokens."""
    rng = random.Random(seed)
    texts = [ids(seed + i, rng.randint(4_000, 8_000), VOCAB) for i in range(12)]
    clients = []
    for number in range(24):
        asks = [
            rng.choice(texts) + ids(seed + 100 * number + i, rng.randint(20, 80), VOCAB)
            for i in range(6)
        ]
        clients.append(Client(asks, 128, is_chat=False))
    return clients


def chats(seed: int) -> list[Client]:
    """160 clients, each with a chat of five turns of 20 to 80 tokens, behind the same 200."""
    rng, system = random.Random(seed), ids(seed, 200, VOCAB)
    clients = []
    for number in range(160):
        asks = [ids(seed + 1 + 10 * number + i, rng.randint(20, 80), VOCAB) for i in range(5)]
        clients.append(Client([system + asks[0], *asks[1:]], 64, is_chat=True))
    return clients


def strangers(seed: int) -> list[Client]:
    """160 clients, each with one prompt of 1,500 tokens and an answer of 600: who is let in early,
    because there is a page for him, may have to go before his end."""
    return [Client([ids(seed + i, 1500, VOCAB)], 600, is_chat=False) for i in range(160)]


HOURS = {
    "documents": (documents, 1),
    "chats": (chats, 100_000),
    "documents again": (documents, 7),
    "long strangers": (strangers, 900_000),
}


def answer(core: EngineCore, clients: list[Client]) -> Iterator[None]:
    """Let all of them ask until they have no more questions; yields behind each step."""
    asking = {}
    for client in clients:
        asking[_ask(core, client)] = client
    while core.has_work:
        moved = core.step()
        for request in moved:
            if request.status == "finished":
                client = asking.pop(request)
                client.text = [*request.prompt_ids, *request.output_ids]
                if client.asks:
                    asking[_ask(core, client)] = client
        yield


def _ask(core: EngineCore, client: Client) -> Any:
    params = SamplingParams(temperature=0, max_tokens=client.out, ignore_eos=True)
    return core.add(client.next(), params)


def day(gib: int, one_arena: bool) -> list[dict[str, Any]]:
    """A row for each hour."""
    engine = EngineConfig(
        max_num_seqs=256,
        max_num_batched_tokens=4096,
        max_model_len=16_384,
        enable_prefix_caching=True,
        one_arena=one_arena,
        overlap=False,
    )
    plan = plan_memory(
        SHAPES["8b"], engine, gib << 30, dtype=torch.bfloat16, state_dtype=torch.float32
    )
    runner = StubRunner(VOCAB, lambda tokens, requests: STEP + TOKEN * tokens)
    core, rows, seen = EngineCore(runner, plan, engine), [], list[StepRecord]()
    core.observers.append(lambda record, *_: seen.append(record))
    for hour, (clients, seed) in HOURS.items():
        began, before = runner.clock, Counter(vars(core.queues.prefix.counts))
        running = [len(core.queues.running) for _ in answer(core, clients(seed))]
        counts = core.queues.prefix.counts
        asked, found = counts.asked - before["asked"], counts.found - before["found"]
        rows.append(
            {
                "gib": gib,
                "memory": "one arena" if plan.pages else "two rooms",
                "seats": plan.max_num_seqs,
                "hour": hour,
                "seconds": round(runner.clock - began, 2),
                "steps": len(running),
                "most_running": max(running),
                "preempted": sum(len(record.preempted) for record in seen),
                "prompt_tokens": asked,
                "percent_hit": round(100 * found / asked, 1),
            }
        )
        seen.clear()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gib", type=int, nargs="+", default=[6, 12, 24], help="of the cache")
    parser.add_argument("--json", type=Path, help="write the result here")
    given = parser.parse_args()
    rows = []
    for gib in given.gib:
        for one_arena in (False, True):
            for row in day(gib, one_arena):
                print(row, flush=True)
                rows.append(row)
    if given.json:
        write(report("arena", rows), given.json)


if __name__ == "__main__":
    main()
