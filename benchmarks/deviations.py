"""What other implementations' ways do to a long text: `python benchmarks/deviations.py`.

A small random checkpoint with a window of 2,048 tokens, read in float64 as it is meant and under
each of `plamo_ref.teaching.deviations.DEVIATIONS`. Two minutes of a core.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from plamo_ref.bench.report import report, write
from plamo_ref.teaching.deviations import departures, long_memory_config, long_memory_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=5120)
    parser.add_argument("--every", type=int, default=40, help="Tokens for one recorded error.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = long_memory_config(options.window)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(6, config.vocab_size, (options.tokens,), generator=generator)
    found = departures(config, long_memory_weights(config), ids, every=options.every)
    rows = []
    for departure in found:
        row = {"window": options.window, "tokens": options.tokens} | asdict(departure)
        row["errors"] = [float(f"{error:.3g}") for error in departure.errors]
        row["largest_error"] = max(row["errors"])
        rows.append(row)
        print(*(f"{key:18} {row[key]}" for key in row if key != "errors"), "", sep="\n")
    if options.json:
        write(report("deviations", rows), options.json)


if __name__ == "__main__":
    main()
