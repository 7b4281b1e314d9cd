"""How much context a small model is good for: the loss with all of it, and with the last bit only.

    python benchmarks/context.py TEXT … [--model tiny] [--length 8192] [--short 256] [--json FILE]

TEXT are the files that the model was trained from: what is scored is the part of them that was
held out, in rows of `length` tokens. Every token is scored twice: after all that comes before it in
its row, and after the last `short` to 2 × short - 1 tokens alone. Where the first is worse than the
second, the context is longer than the model is good for.

Invariant: both sums are over the same tokens.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from plamo_ref import LLM, SamplingParams
from plamo_ref.bench.report import report, write
from plamo_ref.intake.hub import find
from tools.tiny.corpus import encode_passages, split

SCORED = SamplingParams(max_tokens=1, prompt_logprobs=0)


def held_out_rows(llm: LLM, recipe: dict[str, Any], texts: list[str], length: int) -> list[Any]:
    """Rows of held-out token ids, as the model saw its training texts."""
    data = split(texts, held_out_share=recipe["held_out_share"], seed=recipe["seed"])
    config = llm.model_config
    bos, eos = config.bos_token_id or 0, config.eos_token_id or 0
    encode = lambda text: llm.tokenizer.encode(text, add_bos=False)  # noqa: E731
    ids = list(itertools.chain(*encode_passages(data.held_out, encode, bos, eos)))
    return [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]


def losses(llm: LLM, prompts: list[list[int]]) -> list[list[float]]:
    """Nats of every token but the first of each prompt."""
    outputs = llm.generate(prompts, SCORED, use_tqdm=False)
    return [
        [-next(iter(place.values())).logprob for place in output.prompt_logprobs or () if place]
        for output in outputs
    ]


def with_little_context(llm: LLM, row: list[int], short: int) -> list[float]:
    """As `losses` of a row, each token after `short` to 2 × short - 1 others at most."""
    pieces = [row[max(0, i - short) : i + short] for i in range(0, len(row), short)]
    first, *others = losses(llm, pieces)
    return [*first, *(loss for piece in others for loss in piece[short - 1 :])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--short", type=int, default=256)
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    record = json.loads((find(arguments.model) / "training.json").read_text(encoding="utf-8"))
    llm = LLM(arguments.model, device="cpu", max_model_len=arguments.length + 1)
    texts = [path.read_text(encoding="utf-8") for path in arguments.texts]
    rows = held_out_rows(llm, record["recipe"], texts, arguments.length)
    pairs = [(losses(llm, [r])[0], with_little_context(llm, r, arguments.short)) for r in rows]
    found, end = [], 2 * arguments.short
    while end < arguments.length:
        start, end = end, min(2 * end, arguments.length)
        whole, little = (
            sum(sum(pair[side][start - 1 : end - 1]) for pair in pairs) for side in (0, 1)
        )
        count = len(rows) * (end - start)
        found.append(
            {
                "positions": [start, end],
                "tokens": count,
                "nats_all_context": round(whole / count, 4),
                "nats_little_context": round(little / count, 4),
            }
        )
        print(found[-1], flush=True)
    if arguments.json is not None:
        write(report("context", found), arguments.json)


if __name__ == "__main__":
    main()
