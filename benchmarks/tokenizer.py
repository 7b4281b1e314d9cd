"""How fast the tokenizer loads, encodes and decodes.

    python benchmarks/tokenizer.py TEXT [FOLDER] [--rows 100000] [--json FILE]

TEXT is any UTF-8 file, FOLDER one with a tokenizer.jsonl. Without FOLDER the vocabulary is made of
the text's own frequent substrings, so that matches are as long and as many as with a trained one.
Prints a table; --json keeps it with the machine, the versions and the command.

Invariant: everything that is timed is also checked (decoded text equals the text).
"""

import argparse
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plamo_ref.bench.report import report, write
from plamo_ref.text.detokenizer import IncrementalDetokenizer
from plamo_ref.text.tokenizer import Plamo2Tokenizer, Row

LONGEST = 16  # code points of a made piece
COUNTED = 500_000  # code points of the text whose substrings are counted
ADVERSARIAL = 50_000  # code points
SPECIAL = ("unk", "bos", "eos", "pad", "op")


def frequent_substrings(text: str, count: int) -> Counter[str]:
    """The `count` substrings that cover most of `text`, with how often they occur."""
    text = text[:COUNTED]
    kept = Counter(text)
    candidates: Counter[str] = Counter()
    for length in range(2, LONGEST + 1):
        # Only what repeats can have a longer part that repeats.
        found = Counter(
            text[i : i + length]
            for i in range(len(text) - length + 1)
            if length == 2 or text[i : i + length - 1] in candidates
        )
        candidates.update({piece: n for piece, n in found.items() if n > 1})
    room = max(0, count - len(kept))
    by_coverage = sorted(candidates, key=lambda piece: -candidates[piece] * len(piece))
    kept.update({piece: candidates[piece] for piece in by_coverage[:room]})
    return Counter(dict(kept.most_common(count)))


def made_rows(text: str, count: int) -> list[Row]:
    """`count` rows: control, bytes, then substrings scored by the logarithm of their share.

    A text with fewer repeated substrings than that leaves rows that never match.
    """
    rows: list[Row] = [(f"<|plamo:{name}|>", 0.0, "CONTROL") for name in SPECIAL]
    rows += [(f"<0x{value:02X}>", 0.0, "BYTE") for value in range(256)]
    pieces = frequent_substrings(text, count - len(rows))
    total = sum(pieces.values())
    rows += [(piece, round(math.log(n / total), 4), "NORMAL") for piece, n in pieces.items()]
    spare = count - len(rows)
    return rows + [(f"<|plamo:extra:{i:06d}|>", -20.0, "NORMAL") for i in range(spare)]


def seconds(work: Callable[[], Any], repeats: int = 3) -> float:
    """CPU seconds of the fastest of `repeats` runs: other processes do not count."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def stream(tokenizer: Plamo2Tokenizer, ids: list[int]) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
    return "".join([detokenizer.push(i) for i in ids]) + detokenizer.finish()


def measure(text: str, folder: Path) -> dict[str, Any]:
    tokenizer = Plamo2Tokenizer.from_folder(folder)
    ids = tokenizer.encode(text, add_bos=False)
    if not tokenizer.decode(ids) == text == stream(tokenizer, ids):
        raise AssertionError("the decoded text differs from the text")
    megabytes = len(text.encode()) / 1e6
    result: dict[str, Any] = {
        "rows": tokenizer.vocab_size,
        "longest_piece": max(len(text) for text, _, _ in tokenizer.rows),
        "text_mb": round(megabytes, 3),
        "tokens": len(ids),
        "code_points_per_token": round(len(text) / max(1, len(ids)), 3),
        "load_s": round(seconds(lambda: Plamo2Tokenizer.from_folder(folder)), 3),
    }
    rates = {
        "encode": lambda: tokenizer.encode(text, add_bos=False),
        "decode": lambda: tokenizer.decode(ids),
        "stream": lambda: stream(tokenizer, ids),
    }
    for name, work in rates.items():
        result[f"{name}_mb_per_s"] = round(megabytes / max(1e-9, seconds(work)), 2)
    longest = max((row[0] for row in tokenizer.rows), key=len)
    units = {"one letter": "a", "spaces": " ", "one kana": "あ", "no match": "\U000f0000"}
    units["start of longest piece"] = longest[:-1]
    result["adversarial_us_per_code_point"] = {
        name: [microseconds(tokenizer, unit, size) for size in (ADVERSARIAL, 2 * ADVERSARIAL)]
        for name, unit in units.items()
    }
    return result


def microseconds(tokenizer: Plamo2Tokenizer, unit: str, size: int) -> float:
    text = (unit * (size // max(1, len(unit)) + 1))[:size]
    return round(seconds(lambda: tokenizer.encode(text, add_bos=False)) / size * 1e6, 3)


def print_table(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if name != "adversarial_us_per_code_point":
            print(f"{name:26} {value:>12}")
    print(f"\n{'µs per code point':26} {f'n={ADVERSARIAL}':>12} {f'n={2 * ADVERSARIAL}':>12}")
    for name, (once, twice) in result["adversarial_us_per_code_point"].items():
        print(f"{name:26} {once:>12} {twice:>12}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", type=Path, help="a UTF-8 text file")
    parser.add_argument("folder", type=Path, nargs="?", help="a folder with a tokenizer.jsonl")
    parser.add_argument("--rows", type=int, default=100_000, help="size of a made vocabulary")
    parser.add_argument("--json", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    text = arguments.text.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as made:
        if arguments.folder is None:
            Plamo2Tokenizer(made_rows(text, arguments.rows)).save(made)
        result = measure(text, arguments.folder or Path(made))
    print_table(result)
    if arguments.json:
        source = "made from the text" if arguments.folder is None else "given"
        write(report("tokenizer", [{"vocabulary": source} | result]), arguments.json)


if __name__ == "__main__":
    main()
