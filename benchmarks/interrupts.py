"""Interrupts in the middle of calls, and what they change in the streams of others: nothing.

    python benchmarks/interrupts.py [--count 500] [--seed 0] [--device cpu] [--dtype float64]

Four streams are open (greedy, sampled with log probabilities, two completions of one prompt, a
grammar); between two of their tokens a `generate` of other prompts is broken off by a
KeyboardInterrupt, or by a lack of memory, at a random one of the points at which CPython looks for
signals: while its prompts are queued, in a step, while text is made, or as it ends. The streams
then go on to their end. One after the other and overlapped, with either scheduler.

Invariant: counted as changed is every difference of a token, a piece of text, a finish reason or a
log probability; lost blocks and requests for which nobody waits end the program. Only in float64 is
equality promised: a token that is computed again in other company may round differently.
"""

import argparse
import random
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from plamo_ref import LLM, SamplingParams
from plamo_ref.bench.report import report, write
from plamo_ref.proof.interrupts import interrupted
from plamo_ref.sampling import GuidedParams

STREAMS = [
    ("吾輩は", SamplingParams(temperature=0, max_tokens=12)),
    ("To be, or", SamplingParams(seed=3, max_tokens=9, logprobs=2, frequency_penalty=0.5)),
    ("三四郎は" * 4, SamplingParams(n=2, seed=4, max_tokens=8, ignore_eos=True)),
    ("A date: ", SamplingParams(seed=9, max_tokens=9, guided=GuidedParams(regex="[0-9-]{4,9}"))),
]
PROMPTS = ["x", "メロスは激怒した。", "the"]
OTHERS = [
    SamplingParams(seed=1, max_tokens=4, logprobs=1, presence_penalty=0.5),
    SamplingParams(seed=2, max_tokens=5, guided=GuidedParams(regex="[a-z]+")),
    SamplingParams(n=2, seed=3, max_tokens=4),
]
ENGINES: dict[str, dict[str, Any]] = {
    "v1": {},
    "v1, 5 tokens a step": {"max_num_batched_tokens": 5},
    "v1, two seats": {"max_num_seqs": 2},
    "v1, prefix caching": {"max_num_batched_tokens": 16, "enable_prefix_caching": True},
    "v0": {"scheduler": "v0", "max_num_batched_tokens": 64},
    "v0, chunks of 4": {"scheduler": "v0", "chunk_size": 4, "max_num_batched_tokens": 8},
}
POINTS = 12_000  # a call passes about so many


def day(llm: LLM, point: int, error: BaseException) -> tuple[list[Any], str | None]:
    """All that the streams give, and where the call between them was broken off (None: nowhere)."""
    streams = [llm.stream(prompt, params) for prompt, params in STREAMS]
    requests = list(llm.core.requests.values())
    got = [[next(stream)] for stream in streams]
    with interrupted(point, error) as interrupter, suppress(type(error)):
        llm.generate(PROMPTS, OTHERS, use_tqdm=False)
    assert len(llm.core.requests) <= len(requests), "somebody runs for whom nobody waits"
    llm.core.cache.check_integrity()
    for pieces, stream in zip(got, streams, strict=True):
        pieces.extend(stream)
    llm.core.cache.check_integrity()
    assert not llm.core.requests
    assert not llm.core.cache.holdings
    texts = [(p.completion, p.token_id, p.text, p.finish_reason) for ps in got for p in ps]
    return [sorted(texts, key=lambda t: t[0]), [r.logprobs for r in requests]], interrupter.where


def measure(name: str, llm: LLM, count: int, draw: random.Random) -> dict[str, Any]:
    expected, _ = day(llm, -1, KeyboardInterrupt())
    places, changed, started = Counter[str](), 0, time.perf_counter()
    while places.total() < count:
        kind = draw.choice((KeyboardInterrupt, KeyboardInterrupt, MemoryError))
        found, where = day(llm, draw.randrange(POINTS), kind("planned"))
        if where is not None:
            places[where.rpartition(" in ")[2]] += 1
            changed += not same(found, expected)
    seconds = time.perf_counter() - started
    return {
        "engine": name,
        "interrupts": count,
        "functions": len(places),
        "changed": changed,
        "seconds": seconds,
    }


def same(found: list[Any], expected: list[Any]) -> bool:
    """Texts and tokens exactly, log probabilities within 1e-9."""
    scores = [[(s.token_id, s.rank) for r in side[1] for s in r] for side in (found, expected)]
    values = [[s.logprob for r in side[1] for s in r] for side in (found, expected)]
    close = all(abs(a - b) < 1e-9 for a, b in zip(*values, strict=False))
    return found[0] == expected[0] and scores[0] == scores[1] and close


def say(name: str, rows: list[dict[str, Any]]) -> None:
    interrupts, changed = (sum(row[key] for row in rows) for key in ("interrupts", "changed"))
    print(f"{name:32} {interrupts:4} interrupts, {changed} changed", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    draw, rows = random.Random(options.seed), []
    each = -(-options.count // (2 * len(ENGINES)))
    for name, engine in ENGINES.items():
        for overlap in (False, True):
            settings = {"device": options.device, "dtype": options.dtype, "overlap": overlap}
            llm = LLM("tiny", memory_bytes=32 << 20, **settings, **engine)
            row = measure(name + (", overlapped" if overlap else ""), llm, each, draw)
            say(row["engine"], [row])
            rows.append(row)
    say("together", rows)
    if options.json:
        write(report("interrupts", rows), options.json)


if __name__ == "__main__":
    main()
