"""How far the reference is from the golden cases: `python benchmarks/golden.py [--json FILE]`.

Each case was computed by an independent implementation in float32. Two columns say how far our
float32 is from it and from our own float64; the ids are compared as well.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from plamo_ref.bench.report import report, write
from plamo_ref.reference import Plamo2Reference

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"


def measure(folder: Path) -> dict[str, Any]:
    """Largest absolute differences of logits over all positions, and whether the ids agree."""
    expected = load_file(folder / "expected.safetensors")
    prompt, greedy = expected["prompt_ids"], expected["greedy_ids"]
    ids = torch.cat((prompt, greedy))
    logits = {}
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            logits[dtype] = Plamo2Reference.from_pretrained(folder, dtype)(ids)
    ours, wide = logits[torch.float32], logits[torch.float64]
    chosen = ours[len(prompt) - 1 : -1].argmax(-1)
    return {
        "case": folder.name,
        "float32_max_abs": float((ours - expected["logits"]).abs().max()),
        "float64_max_abs": float((wide - expected["logits"]).abs().max()),
        "float32_against_own_float64": float((ours - wide).abs().max()),
        "greedy_ids_equal": bool(torch.equal(chosen, greedy)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    file = parser.parse_args().json
    rows = [measure(folder) for folder in sorted(GOLDEN.iterdir()) if folder.name[0] == "c"]
    print(f"{'case':16} {'float32':>10} {'float64':>10} {'own f64':>10}  ids")
    for row in rows:
        numbers = [row[key] for key in list(row)[1:4]]
        print(f"{row['case']:16} " + " ".join(f"{n:10.2e}" for n in numbers), end="  ")
        print("equal" if row["greedy_ids_equal"] else "DIFFERENT")
    if file:
        write(report("golden", rows), file)


if __name__ == "__main__":
    main()
