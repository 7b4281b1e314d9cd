"""The engine on a GPU with both tables of kernels: `python benchmarks/gpu_engine.py`.

Greedy ids of the golden cases (float32) and of prompts of the embedded model must be those that
were recorded by others, or those of the torch table. Exits with 1 if they are not.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from plamo_ref import LLM, SamplingParams

CACHE_BYTES = 100_000_000  # several engines share the GPU here
GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
PROMPTS = ["吾輩は", "To be, or", "三四郎は" * 40, "x" * 300]


def golden_ids_equal(folder: Path, kernels: str) -> bool:
    """Whether the 32 greedy ids of a golden case come out, with a prompt cut into pieces."""
    expected = load_file(folder / "expected.safetensors")
    settings = {"dtype": "float32", "kernels": kernels, "max_num_batched_tokens": 20}
    llm = LLM(folder, device="cuda", memory_bytes=CACHE_BYTES, **settings)
    params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    (output,) = llm.generate(expected["prompt_ids"].tolist(), params, use_tqdm=False)
    return list(output.outputs[0].token_ids) == expected["greedy_ids"].tolist()


def tiny_ids(kernels: str, dtype: str) -> list[tuple[int, ...]]:
    """Greedy ids of a mixed batch of the embedded model."""
    settings = {"dtype": dtype, "kernels": kernels, "max_num_batched_tokens": 64}
    llm = LLM("tiny", device="cuda", memory_bytes=CACHE_BYTES, **settings)
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    return [o.outputs[0].token_ids for o in llm.generate(PROMPTS * 4, params, use_tqdm=False)]


def main() -> None:
    print(torch.cuda.get_device_name(), torch.__version__)
    wrong = False
    for folder in sorted(GOLDEN.glob("c*")):
        for kernels in ("torch", "triton"):
            equal = golden_ids_equal(folder, kernels)
            wrong |= not equal
            print(f"{folder.name:16} {kernels:7} {'ids equal' if equal else 'IDS DIFFER'}")
    for dtype in ("float32", "bfloat16"):
        pairs = list(zip(tiny_ids("torch", dtype), tiny_ids("triton", dtype), strict=True))
        same = sum(a == b for a, b in pairs)
        print(f"tiny {dtype}: {same} of {len(pairs)} requests have the same 64 ids in both tables")
        wrong |= dtype == "float32" and same < len(pairs)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
