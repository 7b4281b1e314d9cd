"""What drafts from the text itself bring: `python benchmarks/speculation.py --shape 8b`, on a GPU.

Random weights say nothing that could be looked up. Here the embedding of each token is made the row
of the next one in the vocabulary's product, and large. So the model counts, whatever its layers
compute: behind token t comes t + 1. They take the time that they take, and the texts are

    copy    the prompt has all of it
    edit    the prompt has it with each 20th token changed, as a draft that was corrected
    new     no two tokens of it ever come again
    decoy   each two tokens are in the prompt, and another one follows there

One engine runs each text without drafts and with them; the ids must be the same. A row: the tokens
that all requests get in a second, from when each has its first one, and what came of the drafts.

    python benchmarks/speculation.py --shape 8b --json speculation.json
"""

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from plamo_ref.bench.report import report, write
from plamo_ref.bench.shapes import SHAPES, open_core
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.speculation.drafter import Drafter
from plamo_ref.sampling import SamplingParams

FIRST_ID, LOUD = 100, 50.0
EDITED = 20  # tokens, from one change to the next
SEEN = 8  # tokens of the text with which the prompt ends
HEADER = ("batch", "plain_tok_s", "drafts_tok_s", "ratio", "steps", "drafted", "accepted")


def let_it_count(core: EngineCore) -> None:
    """Behind token t comes t + 1, whatever the other weights are."""
    model = core.runner.model
    head = model.lm_head.weight
    following = head[: len(model.embedding)].float().roll(-1, 0)
    loud = LOUD * following / following.square().mean(1, keepdim=True).sqrt()
    model.embedding = loud.to(model.embedding.dtype)


def prompt(text: str, number: int, output: int, vocab_size: int) -> list[int]:
    """A prompt behind which the model says `output` tokens; each number has its own."""
    rng = random.Random(number)
    span = output + 2 * SEEN
    first = FIRST_ID + number * span % (vocab_size - 2 * span - FIRST_ID)
    said = list(range(first, first + span))
    if text == "copy":
        return [*said, *said[:SEEN]]
    if text == "edit":
        changed = [first - 1 if i % EDITED == EDITED - 1 else t for i, t in enumerate(said)]
        return [*changed, *said[:SEEN]]
    if text == "decoy":
        pairs = [(t, t + 1, t) for t in said[SEEN - 2 :]]
        return [*(t for pair in pairs for t in pair), *said[:SEEN]]
    return [*(rng.randrange(vocab_size - span, vocab_size - 1) for _ in said), *said[:SEEN]]


def run(core: EngineCore, prompts: list[list[int]], output: int) -> tuple[float, list[list[int]]]:
    """Tokens per second from when all have their first one, and the ids."""
    params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
    requests = [core.add(ids, params) for ids in prompts]
    while not all(request.output_ids for request in requests):
        core.step()
    before, started = sum(len(r.output_ids) for r in requests), time.perf_counter()
    while core.has_work:
        core.step()
    seconds = time.perf_counter() - started
    tokens = sum(len(r.output_ids) for r in requests) - before
    return tokens / seconds, [r.output_ids for r in requests]


def measured(
    core: EngineCore, drafter: Drafter | None, prompts: list[list[int]], options: argparse.Namespace
) -> dict[str, Any]:
    core.queues.drafter = drafter
    for _ in range(1 if drafter is None else 2):  # compiles, and records what is needed twice
        run(core, prompts, options.output)
    steps = core.num_steps
    drafted = accepted = 0
    if drafter is not None:
        drafted, accepted = drafter.num_draft_tokens, drafter.num_accepted_tokens
    runs = [run(core, prompts, options.output) for _ in range(options.repeat)]
    found = {
        "tokens_per_s": median(rate for rate, _ in runs),
        "steps": (core.num_steps - steps) / options.repeat,
        "ids": runs[0][1],
    }
    if drafter is not None:
        found["drafted"] = (drafter.num_draft_tokens - drafted) / options.repeat
        found["accepted"] = (drafter.num_accepted_tokens - accepted) / options.repeat
    return found


def rows(core: EngineCore, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    drafter = core.queues.drafter
    assert isinstance(drafter, Drafter)
    vocab_size = core.runner.model.config.vocab_size
    for text in options.texts:
        for batch in options.batches:
            prompts = [prompt(text, i, options.output, vocab_size) for i in range(batch)]
            plain = measured(core, None, prompts, options)
            drafts = measured(core, drafter, prompts, options)
            counted = [list(range(p[-1] + 1, p[-1] + 1 + options.output)) for p in prompts]
            yield {
                "text": text,
                "batch": batch,
                "plain_tok_s": round(plain["tokens_per_s"], 1),
                "drafts_tok_s": round(drafts["tokens_per_s"], 1),
                "ratio": round(drafts["tokens_per_s"] / plain["tokens_per_s"], 3),
                "plain_steps": plain["steps"],
                "steps": drafts["steps"],
                "drafted": drafts["drafted"],
                "accepted": round(drafts["accepted"] / max(1.0, drafts["drafted"]), 3),
                "same_ids": plain["ids"] == drafts["ids"] == counted,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="random weights of this shape")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--texts", nargs="+", default=["copy", "new", "edit", "decoy"])
    parser.add_argument("--output", type=int, default=160, help="tokens")
    parser.add_argument("--drafts", type=int, default=8, help="num_speculative_tokens")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--prefix-caching", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engine = EngineConfig(
        load_format="dummy",
        max_num_seqs=max(options.batches),
        max_model_len=8 * options.output,
        enable_prefix_caching=options.prefix_caching,
        speculative_config={"method": "ngram", "num_speculative_tokens": options.drafts},
    )
    core, _ = open_core(options.model, options.shape, engine)
    let_it_count(core)
    print(f"{'':8}" + "".join(f"{name:>14}" for name in HEADER), flush=True)
    found = []
    for row in rows(core, options):
        found.append({"num_speculative_tokens": options.drafts, "output": options.output, **row})
        cells = "".join(f"{row[name]:>14g}" for name in HEADER)
        print(f"{row['text']:8}{cells}{'' if row['same_ids'] else '   OTHER IDS'}", flush=True)
        if options.json:
            write(report("speculation", found), options.json)
    if not all(row["same_ids"] for row in found):
        raise SystemExit("the ids are not the same with and without drafts")


if __name__ == "__main__":
    main()
