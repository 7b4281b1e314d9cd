"""Load a full-shape checkpoint and generate a little: `python benchmarks/load.py FOLDER`.

FOLDER is written first, with random bf16 weights of the 1B shape (2.6 GB), if it does not exist.
Prints load time, the peak of the process's own (anonymous) memory against what stays, and the time
for 8 tokens on the CPU.
"""

import argparse
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from plamo_ref.bench.report import report, write
from plamo_ref.bench.shapes import SHAPES
from plamo_ref.engine.llm import LLM
from plamo_ref.intake.hub import find
from plamo_ref.sampling import SamplingParams
from plamo_ref.text.tokenizer import Plamo2Tokenizer
from plamo_ref.weights.checkpoint import save

CACHE_BYTES = 200_000_000
TOKENS = 8


def write_random(folder: Path) -> None:
    """A checkpoint of the 1B shape with random weights and the embedded tokenizer."""
    generator = torch.Generator().manual_seed(0)
    tensors = (
        (name, (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16))
        for name, shape in SHAPES["1b"].tensor_shapes.items()
    )
    save(folder, SHAPES["1b"], tensors, dtype=torch.bfloat16)
    Plamo2Tokenizer.from_folder(find("tiny")).save(folder)


def own_bytes() -> int:
    """Memory of this process without mapped files."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


class Peak:
    """The largest `own_bytes` while the block runs."""

    def __enter__(self) -> "Peak":
        self.bytes, self._running = 0, True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._running:
            self.bytes = max(self.bytes, own_bytes())
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self._running = False
        self._thread.join()


def measure(folder: Path) -> dict[str, Any]:
    LLM("tiny")  # imports and thread pools are not what is measured
    before = own_bytes()
    start = time.perf_counter()
    with Peak() as peak:
        llm = LLM(folder, dtype="bfloat16", memory_bytes=CACHE_BYTES)
        loaded = time.perf_counter() - start
    stays = own_bytes() - before
    prompt, params = "吾輩は猫である。", SamplingParams(temperature=0, max_tokens=TOKENS)
    start = time.perf_counter()
    output = llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]
    assert len(output.token_ids) == TOKENS or output.finish_reason == "stop"
    return {
        "file_gb": round((folder / "model.safetensors").stat().st_size / 1e9, 3),
        "load_s": round(loaded, 2),
        "peak_gb_over_what_stays": round((peak.bytes - before - stays) / 1e9, 3),
        "stays_gb": round(stays / 1e9, 3),
        "generate_8_tokens_s": round(time.perf_counter() - start, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.folder.exists():
        write_random(options.folder)
    row = measure(options.folder)
    for key, value in row.items():
        print(f"{key:24} {value}")
    if options.json:
        write(report("load_1b", [row]), options.json)


if __name__ == "__main__":
    main()
