"""From logits to tokens, where the logits are no numbers.

Invariant tested: a row that has a NaN gives no token and an error that says so, and no other row
notices.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plamo_ref import LLM, SamplingParams
from plamo_ref.engine.request import Request
from plamo_ref.engine.tokens import NO_TOKEN, LogitsError, choose_on_device, read_tokens
from plamo_ref.intake.hub import find

KINDS = {
    "greedy": SamplingParams(temperature=0),
    "sampled": SamplingParams(temperature=1, seed=3),
    "truncated": SamplingParams(temperature=1, top_k=4, top_p=0.9, min_p=0.1, seed=3),
    "penalised": SamplingParams(temperature=1, repetition_penalty=1.5, logit_bias={1: 2.0}, seed=3),
    "never its end": SamplingParams(temperature=1, min_tokens=4, seed=3),
}


def requests(params: Sequence[SamplingParams]) -> list[Request]:
    return [
        Request(f"r{i}", (1, 2, 3), one, frozenset({0}), 7 + i, i) for i, one in enumerate(params)
    ]


def choose(asked: Sequence[Request], logits: torch.Tensor) -> list[int]:
    return read_tokens(asked, logits, choose_on_device(asked, logits))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("places", [(0,), (9,), (4, 5), tuple(range(10))])
def test_a_row_with_a_nan_gives_no_token_and_the_others_give_theirs(dtype, places):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2 * len(KINDS), 10, generator=generator).to(dtype)
    asked = requests([params for params in KINDS.values() for _ in range(2)])
    before = choose_on_device(asked, logits).tolist()
    assert NO_TOKEN not in before
    for row in range(0, len(asked), 2):
        logits[row, list(places)] = torch.nan
    after = choose_on_device(asked, logits).tolist()
    assert after[::2] == [NO_TOKEN] * len(KINDS)
    assert after[1::2] == before[1::2]


def test_infinities_are_numbers():
    logits = torch.zeros(2, 10)
    logits[0] = -torch.inf
    logits[1, 3] = torch.inf
    assert choose(requests([KINDS["greedy"]] * 2), logits) == [0, 3]


def test_the_error_names_the_request_and_the_place():
    asked = requests([KINDS["greedy"], KINDS["sampled"]])
    logits = torch.zeros(2, 10)
    logits[1, 0] = torch.nan
    with pytest.raises(LogitsError, match=r"request r1: .* not numbers \(NaN\) after 3 tokens"):
        choose(asked, logits)
    asked[1].finish("abort")  # one that nobody waits for is nobody's error
    choose(asked, logits)


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """The embedded model with weights that are numbers, and sums of them that are none."""
    for path in find("tiny").iterdir():
        if path.suffix in (".json", ".jsonl"):
            shutil.copy(path, tmp_path)
    tensors = load_file(find("tiny") / "model.safetensors")
    name = "model.layers.layers.0.mlp.down_proj.weight"
    tensors[name] = torch.full_like(tensors[name], 3e38)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("overlap", [False, True])
def test_weights_that_overflow_are_an_error_and_no_empty_text(overflowing, overlap):
    llm = LLM(overflowing, memory_bytes=8 << 20, overlap=overlap)
    (output,) = llm.generate("吾輩は", SamplingParams(max_tokens=4), use_tqdm=False)
    assert output.outputs[0].finish_reason == "error"
    assert "the model's logits are not numbers" in output.outputs[0].error
    assert not llm.core.has_work
