"""What prefix caching saves: a crowd with one beginning, and chats of several turns.

Invariant: every prompt is decided by its numbers, so that another engine can be given the very same
ids; no run finds what another one has left.

The least that could be computed is what a memory without bounds would leave that has a state at
every token: of each prompt, what comes behind the longest beginning that any earlier text has.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.radix import Node, descend, insert
from plamo_ref.engine.request import Request
from plamo_ref.sampling import SamplingParams

FIRST_ID, LAST_ID = 256, 100_000  # random prompts avoid control tokens


def ids(seed: int, count: int, vocab_size: int = LAST_ID) -> list[int]:
    """Random token ids."""
    rng = random.Random(seed)
    return [rng.randrange(FIRST_ID, min(LAST_ID, vocab_size)) for _ in range(count)]


@dataclass
class Run:
    """One engine that answers prompts, call by call, and what came of it."""

    core: EngineCore
    requests: list[Request] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each call
    least: int = 0  # tokens of prompts that had to be computed
    _texts: Node[None] = field(default_factory=Node)

    def call(self, prompts: Sequence[Sequence[int]], out: int) -> list[Request]:
        """Answer these together, greedily and to their full lengths."""
        params = SamplingParams(temperature=0, max_tokens=out, ignore_eos=True)
        started = time.perf_counter()
        asked = [self.core.add(prompt, params) for prompt in prompts]
        while self.core.has_work:
            self.core.step()
        self.seconds.append(time.perf_counter() - started)
        for request in asked:
            known = descend(self._texts, request.prompt_ids)[1]
            self.least += len(request.prompt_ids) - min(known, len(request.prompt_ids) - 1)
            insert(self._texts, request.prompt_ids)
        for request in asked:
            insert(self._texts, (*request.prompt_ids, *request.output_ids))
        self.requests += asked
        return asked

    def row(self) -> dict[str, Any]:
        """The numbers that go into a report."""
        prompts = sum(len(request.prompt_ids) for request in self.requests)
        found = sum(request.num_cached_tokens or 0 for request in self.requests)
        return {
            "seconds": round(sum(self.seconds), 4),
            "last_call_seconds": round(self.seconds[-1], 4),
            "prompt_tokens": prompts,
            "computed_tokens": prompts - found,
            "least_tokens": self.least,
            "percent_hit": round(100 * found / prompts, 1),
        }


def tail_lens() -> list[int]:
    """Of the crowd's prompts, what each has for itself."""
    rng = random.Random(20261128)
    return [rng.randint(100, 300) for _ in range(64)]


def crowd(core: EngineCore, rep: int, scale: float, out: int) -> dict[str, Any]:
    """64 prompts of 3,000 common and 100 to 300 own tokens: one, another one, the rest at once.

    Then, for `hit_ttft_ms` alone, one more with 200 of its own: the time to its first token, as
    `second_ttft_ms` is that of the second one.
    """
    vocab, rng = core.runner.model.config.vocab_size, random.Random(20261128)
    tails = [max(1, round(scale * rng.randint(100, 300))) for _ in range(64)]
    common = ids(1_000_000 + rep, max(1, round(scale * 3000)), vocab)
    prompts = [common + ids(2_000_000 + 100 * rep + i, tail, vocab) for i, tail in enumerate(tails)]
    run = _begin(core)
    run.call(prompts[:1], out)
    (second,) = run.call(prompts[1:2], out)
    run.call(prompts[2:], out)
    row = run.row()
    own = ids(2_000_000 + 100 * rep + len(tails), max(1, round(scale * 200)), vocab)
    (hit,) = run.call([common + own], 1)
    return {**row, "second_ttft_ms": _ttft_ms(second), "hit_ttft_ms": _ttft_ms(hit)}


def _ttft_ms(request: Request) -> float:
    """From its arrival to its first token."""
    return round(1e3 * ((request.times.first_token or 0) - request.times.queued), 2)


def chats(core: EngineCore, rep: int, scale: float, out: int) -> dict[str, Any]:
    """32 conversations with the same 1,000 tokens before them, 5 turns of 150 tokens each."""
    vocab, turn_len = core.runner.model.config.vocab_size, max(1, round(scale * 150))
    system = ids(3_000_000 + rep, max(1, round(scale * 1000)), vocab)
    texts, run = [system] * 32, _begin(core)
    for turn in range(5):
        seeds = [4_000_000 + 1000 * rep + 10 * chat + turn for chat in range(32)]
        prompts = [
            text + ids(seed, turn_len, vocab) for text, seed in zip(texts, seeds, strict=True)
        ]
        texts = [[*r.prompt_ids, *r.output_ids] for r in run.call(prompts, out)]
    return run.row()


def one_chat(core: EngineCore, rep: int, scale: float, out: int) -> dict[str, Any]:
    """One conversation like those of `chats`, with nobody beside it, and afterwards a stranger's
    prompt as long as the last turn's own text: the time to the first token of each."""
    vocab, turn_len = core.runner.model.config.vocab_size, max(1, round(scale * 150))
    text, run = ids(5_000_000 + rep, max(1, round(scale * 1000)), vocab), _begin(core)
    ttfts = []
    for turn in range(5):
        (turned,) = run.call([text + ids(6_000_000 + 10 * rep + turn, turn_len, vocab)], out)
        text = [*turned.prompt_ids, *turned.output_ids]
        ttfts.append(_ttft_ms(turned))
    row = run.row()
    (alone,) = run.call([ids(7_000_000 + rep, turn_len, vocab)], out)
    return {
        **row,
        "turn_ttft_ms": ttfts,
        "fifth_ttft_ms": ttfts[-1],
        "alone_ttft_ms": _ttft_ms(alone),
    }


def _begin(core: EngineCore) -> Run:
    core.reset_prefix_cache()
    return Run(core)


WORKLOADS = {
    "crowd": (crowd, 64),
    "crowd, 1 token": (crowd, 1),
    "chats": (chats, 128),
    "one chat": (one_chat, 128),
}


def time_workloads(core: EngineCore, scale: float, repeat: int) -> list[dict[str, Any]]:
    """A row for each workload: the run in the middle, after two that pay for later ones, as a step
    is recorded when its room is needed for the second time."""
    rows = []
    for number, (name, (workload, out)) in enumerate(WORKLOADS.items()):
        out = max(1, round(scale * out))
        runs = [workload(core, 10 * number + rep, scale, out) for rep in range(repeat + 2)][2:]
        middle = median(run["seconds"] for run in runs)
        run = min(runs, key=lambda run: abs(run["seconds"] - middle))
        caching = core.config.enable_prefix_caching
        rows.append({"workload": name, "prefix_caching": caching, "output_len": out} | run)
    return rows
