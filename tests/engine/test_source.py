"""Random weights in place of a checkpoint: for measuring a shape whose weights are not at hand.

Invariant tested: config.json and the tokenizer are enough, the shape is theirs, and a folder
without weights is still refused where weights are wanted.
"""

import json
from pathlib import Path

import pytest

from plamo_ref import LLM, SamplingParams
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.source import open_source
from plamo_ref.intake.hub import find
from plamo_ref.weights.checkpoint import CheckpointError
from plamo_ref.weights.random import RandomWeightsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model's config, four layers of it, and its tokenizer; no weights."""
    source = find("tiny")
    config = json.loads((source / "config.json").read_text()) | {"num_hidden_layers": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (*source.glob("tokenizer*"), *source.glob("special*")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_folder_without_weights_runs_with_random_ones(folder):
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    texts = []
    for _ in range(2):
        llm = LLM(folder, load_format="dummy", device="cpu", memory_bytes=8 << 20)
        assert len(llm.core.runner.model.layers) == 4
        (output,) = llm.generate("吾輩は", params, use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 5
        texts.append(output.outputs[0].text)
    assert texts[0] == texts[1]


def test_the_ids_that_end_a_text_are_the_folders(folder):
    assert open_source(folder, "dummy").stop_token_ids == open_source(find("tiny")).stop_token_ids


def test_without_being_asked_for_random_weights_are_never_used(folder):
    with pytest.raises(CheckpointError, match="safetensors"):
        LLM(folder)
    with pytest.raises(EngineError, match="load_format"):
        EngineConfig(load_format="random")  # type: ignore[arg-type]


def test_random_weights_that_no_machine_holds_are_refused_before_any_is_made(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 1024, "intermediate_size": 1 << 20, "hidden_size": 1 << 14}
    (folder / "config.json").write_text(json.dumps(config))
    said = r"[\d,]{15,} random weights need [\d,]{15,} bytes, but cpu has"
    with pytest.raises(RandomWeightsError, match=said):
        LLM(folder, load_format="dummy", device="cpu")
