"""The ledger: a sentence for each recorded result, beside the card that gave it."""

import json

import pytest

from tools.ledger import LINES, files_of, ledger

DECODE = {
    "model": "8b",
    "state_dtype": "bfloat16",
    "cuda_graphs": True,
    "batch": 32,
    "step_ms": 5.4321,
    "percent_of_floor": 85.2,
    "products_ms": 5.05,
}
STARTUP = {"model": "8b", "cache": "cold", "precompile": True, "to_first_token_s": 17.26}
OFF = {"model": "8b", "batch": 1, "step_ms": 4.6, "instead": "everything is on", "off": "nothing"}
KERNEL = {"shape": "8B", "operation": "add_norm", "percent_of_floor": 91.4}


def record(folder, name, rows, machine="NVIDIA H100"):
    result = {"machine": machine, "versions": {"torch": "2.11"}, "date": "2026-11-24"}
    (folder / f"{name}.json").write_text(json.dumps(result | {"command": "redo it", "data": rows}))


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        (
            "gpu_decode_8b_bf16",
            [DECODE],
            [
                "8B shape with a bfloat16 state, decode step by batch: 32: **5.43 ms** (85 % of "
                "the floor)",
                "the library's products of such a step alone: 32: 5.05 ms",
            ],
        ),
        (
            "gpu_startup_8b",
            [STARTUP, STARTUP | {"precompile": False}],
            [
                "cold kernels: **17.3 s**; cold kernels, each compiled when first launched: "
                "**17.3 s**"
            ],
        ),
        (
            "gpu_ablation_8b",
            [OFF, OFF | {"off": "qk", "instead": "apart", "buys_percent": 4.6}],
            ["at batch 1 with everything on: 4.60 ms; with one thing off: qk +5 %"],
        ),
        (
            "gpu_kernels",
            [KERNEL, KERNEL | {"percent_of_floor": 50.0}],
            ["8B shape, kernels alone, best share of the floor: add_norm 91 %"],
        ),
        (
            "gpu_prefill_1b",
            [{"model": "1b", "batch": 4, "prompt_len": 2048, "tokens_per_s": 9e4}],
            ["1B shape, prefill by prompt length: 4 × 2,048: 90,000 tokens/s"],
        ),
        (
            "gpu_mixed_1b",
            [{"model": "1b", "seconds": 1.5, "percent_of_floor": 42.0}],
            ["1B shape, the whole mixed workload: 1.50 s (42 % of the floor)"],
        ),
    ],
)
def test_each_result_is_a_sentence(tmp_path, name, rows, said):
    record(tmp_path, name, rows)
    lines = ledger(tmp_path).splitlines()[2:]
    assert len(lines) == len(said)
    for line, sentence in zip(lines, said, strict=True):
        assert sentence in line
        assert "| NVIDIA H100, torch 2.11, 2026-11-24 | `redo it` |" in line


def test_the_same_measured_on_two_cards_is_two_lines(tmp_path):
    record(tmp_path, "gpu_decode_8b", [DECODE])
    record(tmp_path, "gpu_decode_8b_h200", [DECODE], "NVIDIA H200")
    record(tmp_path, "gpu_decode_8b_plain", [DECODE], "not this")
    found = files_of("gpu_decode_8b", tmp_path)
    assert [path.stem for path in found] == ["gpu_decode_8b", "gpu_decode_8b_h200"]
    assert ledger(tmp_path).count("NVIDIA H200") == 2


def test_what_is_not_a_card_is_another_result(tmp_path):
    for name in ("mixed_h100", "mixed_bf16", "mixed_8b", "mixed_h1", "mixed_a100x"):
        record(tmp_path, name, [])
    assert [path.stem for path in files_of("mixed", tmp_path)] == ["mixed_h100"]
    assert "mixed" in LINES
