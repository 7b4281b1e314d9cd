"""Everything that is measured on a GPU, in one call: `python benchmarks/gpu_session.py PART …`.

Each part is a process of its own, so that none spoils another, and leaves one JSON file in --out
(default: the folder in $OUT, else ./recorded). Parts that no longer fit into --seconds are left
out and named. Last comes what the files say, as the ledger's tables. Exits with 1 if a part failed.

With --rehearse the same parts run on the embedded model in small, on any machine.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

BENCH = ("-m", "plamo_ref", "bench")
LARGE = ("--max-num-batched-tokens", "16384")
FEW = ("--model", "tiny", "--repeat", "1", "--max-num-seqs", "3")


@dataclass(frozen=True)
class Part:
    """A measurement: its words, those of its rehearsal, and how long it may take."""

    words: tuple[str, ...]
    small: tuple[str, ...] | None  # None: there is nothing to rehearse without a GPU
    seconds: int
    file: str | None = None


def decode(shape: str, *more: str) -> Part:
    kind = "_".join(("gpu_decode", shape, *(["bf16"] if "bfloat16" in more else [])))
    small = (*BENCH, "decode", "--batches", "1,3", "--output-len", "3", *FEW, *more)
    return Part((*BENCH, "decode", "--shape", shape, *LARGE, *more), small, 150, kind)


def prefill(shape: str) -> Part:
    words = (*BENCH, "prefill", "--shape", shape, "--lengths", "128,512,1024,2048,8192", *LARGE)
    return Part(words, (*BENCH, "prefill", "--lengths", "9", *FEW), 90, f"gpu_prefill_{shape}")


def mixed(shape: str, *more: str) -> Part:
    kind = "_".join(("gpu_mixed", shape, *(["bf16"] if "bfloat16" in more else [])))
    full = ("--shape", shape, "--repeat", "3", "--max-num-seqs", "256", *LARGE)
    small = (*BENCH, "mixed", "--requests", "3", "--scale", "0.02", *FEW, *more)
    return Part((*BENCH, "mixed", *full, *more), small, 120, kind)


def startup(shape: str) -> Part:
    words = (*BENCH, "startup", "--shape", shape, "--compare", *LARGE)
    return Part(words, (*BENCH, "startup", "--model", "tiny"), 150, f"gpu_startup_{shape}")


def ablation(shape: str) -> Part:
    small = (*BENCH, "ablation", "--batches", "1", "--output-len", "3", *FEW)
    words = (*BENCH, "ablation", "--shape", shape, *LARGE)
    return Part(words, small, 420, f"gpu_ablation_{shape}")


def prefix(shape: str) -> Part:
    full = ("--shape", shape, "--repeat", "1", "--both", "--max-num-seqs", "256", *LARGE)
    small = (*BENCH, "prefix", "--scale", "0.01", "--both", *FEW)
    return Part((*BENCH, "prefix", *full), small, 150, f"gpu_prefix_{shape}")


PENALTIES = Part(
    ("benchmarks/penalties.py",),
    ("benchmarks/penalties.py", "--batch", "2", "--context", "9", "--vocab", "300"),
    90,
    "gpu_penalties",
)
BF16 = ("--state-dtype", "bfloat16")
CHECK, CHECKS = ("-m", "plamo_ref.bench.kernels.check"), 3
PARTS = {
    **{
        f"check{part}": Part((*CHECK, "--part", f"{part}/{CHECKS}"), None, 300)
        for part in range(1, CHECKS + 1)
    },
    "engine": Part(("benchmarks/gpu_engine.py",), None, 120),
    "decode8b": decode("8b"),
    "decode8b-bf16": decode("8b", *BF16),
    "prefill8b": prefill("8b"),
    "mixed8b": mixed("8b"),
    "mixed8b-bf16": mixed("8b", *BF16),
    "decode1b": decode("1b"),
    "decode1b-bf16": decode("1b", *BF16),
    "prefill1b": prefill("1b"),
    "mixed1b": mixed("1b"),
    "startup8b": startup("8b"),
    "startup1b": startup("1b"),
    "ablation8b": ablation("8b"),
    "ablation1b": ablation("1b"),
    "prefix8b": prefix("8b"),
    "penalties": PENALTIES,
    "kernels": Part((*BENCH, "kernels"), None, 240, "gpu_kernels"),
}
SHOWN = 15  # last lines of a process that failed


def run(name: str, part: Part, out: Path, limit: float, rehearse: bool) -> bool:
    """Run one part; True if it was good."""
    words = part.small if rehearse else part.words
    if words is None:
        print(f"{name}: needs a GPU, not rehearsed", flush=True)
        return True
    keep = () if part.file is None else ("--json", str(out / f"{part.file}.json"))
    command = [sys.executable, *words, *keep]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, check=False, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        print(f"{name}: STOPPED after {limit:.0f} s", flush=True)
        return False
    took = time.perf_counter() - started
    good = done.returncode == 0
    print(f"{name}: {'done' if good else 'FAILED'} in {took:.1f} s", flush=True)
    if not good or part.file is None:
        lines = (done.stdout + done.stderr).splitlines()
        print(*(f"    {line[:200]}" for line in lines[-SHOWN:]), sep="\n", flush=True)
    return good


ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=RAW)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=540.0, help="for all parts together")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "recorded")))
    parser.add_argument("--rehearse", action="store_true", help="in small, on any machine")
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; parts are {', '.join(PARTS)}")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    end = time.perf_counter() + options.seconds
    good, left_out, files = True, [], []
    for name in options.parts or PARTS:
        part, left = PARTS[name], end - time.perf_counter()
        if left < min(30.0, part.seconds):
            left_out.append(name)
            continue
        good &= run(name, part, out, min(left, part.seconds), options.rehearse)
        files += [part.file] if part.file else []
    summarise(out, files)
    if left_out:
        print(f"no time for: {', '.join(left_out)}")
    sys.exit(not good or bool(left_out))


def summarise(out: Path, files: list[str]) -> None:
    """What was measured, as the ledger's tables."""
    there = [str(path) for name in files if (path := out / f"{name}.json").exists()]
    command = [sys.executable, "-m", "tools.ledger.show", *there]
    # A machine that only measures may lack what the lessons draw with: then the files must do.
    subprocess.run(command, cwd=ROOT, check=False)


RAW = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
