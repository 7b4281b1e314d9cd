"""What a grammar mask costs, per token, at a vocabulary of 100,000.

    python benchmarks/masks.py [FOLDER] [--rows 100000] [--outputs 20] [--json FILE]

FOLDER has a tokenizer.jsonl. Without it the vocabulary is made: words of random letters and kana,
as long as real ones. Each grammar is followed by outputs that draw every token evenly from the
mask, the hardest case for a grammar engine. The last row is a batch of 32 that adjusts its logits.

Invariant: what is timed is also checked (every finished output is complete in its grammar).
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plamo_ref.bench.report import report, write
from plamo_ref.sampling import GuidedParams, GuideMaker, SamplingParams
from plamo_ref.sampling.adjust import RowContext, adjust
from plamo_ref.text.tokenizer import Plamo2Tokenizer, Row

SPECIAL = ("unk", "bos", "eos", "pad", "op")
EOS = 2
LONGEST = 64  # tokens of an output
LETTERS = "etaoinshrdlcumwfgypbvk"
KANA = "".join(map(chr, range(0x3041, 0x3094)))
CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "population": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["port", "capital", "都"]}, "maxItems": 3},
    },
    "required": ["name", "population", "tags"],
    "additionalProperties": False,
}
GRAMMARS = {
    "JSON schema": GuidedParams(json=CITY),
    "any JSON object": GuidedParams(json_object=True),
    "regex [ぁ-ん]+": GuidedParams(regex="[ぁ-ん]+"),
    "regex of a date": GuidedParams(regex="(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]"),
    "one of 1,000 choices": GuidedParams(choice=[f"city {i * 7919 % 10007}" for i in range(1000)]),
    "Lark: sums": GuidedParams(grammar='start: t ("+" t)*\nt: /[0-9]+/ | "(" start ")"\n'),
}


def made_rows(count: int) -> list[Row]:
    """Control rows, bytes, ASCII, then distinct made-up words."""
    rows: list[Row] = [(f"<|plamo:{name}|>", 0.0, "CONTROL") for name in SPECIAL]
    rows += [(f"<0x{value:02X}>", 0.0, "BYTE") for value in range(256)]
    draw, words = random.Random(0), dict.fromkeys(map(chr, range(32, 127)))
    while len(rows) + len(words) < count:
        alphabet = draw.choice((LETTERS, KANA))
        word = "".join(draw.choices(alphabet, k=draw.randint(1, 9)))
        words.setdefault(word if alphabet == KANA or draw.random() < 0.5 else " " + word)
    return rows + [(word, -5.0 - len(word) / 9, "NORMAL") for word in words]


def follow(maker: GuideMaker, params: GuidedParams, draw: random.Random) -> list[float]:
    """Seconds of each mask of one output."""
    guide, seconds = maker.start(params), []
    for _ in range(LONGEST):
        start = time.perf_counter()
        mask = guide.mask([EOS])
        seconds.append(time.perf_counter() - start)
        token = draw.choice(np.flatnonzero(mask).tolist())
        guide.accept(token)
        if token == EOS or guide.finished:
            if not guide.complete:
                raise AssertionError(f"{params}: an output ended that is not in the grammar")
            break
    return seconds


def apply_seconds(vocab_size: int, maker: GuideMaker, batch: int) -> float:
    """Seconds that `adjust` takes for `batch` rows with a JSON schema, masks included."""
    params = SamplingParams(guided=GRAMMARS["JSON schema"])
    contexts = [
        RowContext(params, [1], [], [EOS], maker.start(GRAMMARS["JSON schema"]))
        for _ in range(batch)
    ]
    logits = torch.zeros(batch, vocab_size)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        adjust(logits, contexts)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(tokenizer: Plamo2Tokenizer, outputs: int) -> Iterator[dict[str, Any]]:
    """A row for each grammar, then one for a batch that adjusts its logits, masks included."""
    maker = GuideMaker(tokenizer, tokenizer.vocab_size, [EOS])
    for name, params in GRAMMARS.items():
        start = time.perf_counter()
        maker.start(params)
        compiled = time.perf_counter() - start
        draw = random.Random(0)
        masks = sorted(s for _ in range(outputs) for s in follow(maker, params, draw))
        yield {
            "vocabulary": tokenizer.vocab_size,
            "grammar": name,
            "start_ms": round(1e3 * compiled, 2),
            "masks": len(masks),
            "median_us": round(1e6 * statistics.median(masks), 1),
            "p99_us": round(1e6 * masks[math.ceil(0.99 * len(masks)) - 1], 1),
        }
    seconds = apply_seconds(tokenizer.vocab_size, maker, 32)
    yield {
        "vocabulary": tokenizer.vocab_size,
        "grammar": "JSON schema, 32 rows",
        "adjust_ms": round(1e3 * seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", help="a folder with a tokenizer.jsonl")
    parser.add_argument("--rows", type=int, default=100_000, help="size of a made vocabulary")
    parser.add_argument("--outputs", type=int, default=20, help="outputs for each grammar")
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    if arguments.folder is None:
        tokenizer = Plamo2Tokenizer(made_rows(arguments.rows))
    else:
        tokenizer = Plamo2Tokenizer.from_folder(arguments.folder)
    rows = []
    for row in measure(tokenizer, arguments.outputs):
        rows.append(row)
        print(row, flush=True)
    if arguments.json is not None:
        write(report("masks", rows), arguments.json)


if __name__ == "__main__":
    main()
