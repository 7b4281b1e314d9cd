"""generation_config.json: the ids that end a text, and sampling defaults as vLLM applies them.

Invariant tested: a call that names no parameters gets the checkpoint's, one that names some keeps
them, and what the file cannot mean is refused when the folder is opened.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plamo_ref import LLM, SamplingParams
from plamo_ref.config import ConfigError
from plamo_ref.engine.source import open_source
from plamo_ref.intake.hub import find
from plamo_ref.remote.async_llm import AsyncLLM
from plamo_ref.server.config import ServerConfig
from plamo_ref.server.openai.params import chat_params
from plamo_ref.server.openai.schemas import ChatRequest
from plamo_ref.server.service import Service
from plamo_ref.weights.checkpoint import Checkpoint, CheckpointError

GREEDY = {"temperature": 0, "max_new_tokens": 7, "top_k": 3, "repetition_penalty": 1.5}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model."""
    for path in find("tiny").iterdir():
        if path.suffix in (".json", ".jsonl"):
            shutil.copy(path, tmp_path)
    (tmp_path / "model.safetensors").symlink_to(find("tiny") / "model.safetensors")
    return tmp_path


def edit(path: Path, **keys: Any) -> None:
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(data | keys))


# --- ids -----------------------------------------------------------------------------------------


def test_both_files_may_list_several_ids(folder):
    edit(folder / "config.json", eos_token_id=[1, 4])
    assert Checkpoint.open(folder).stop_token_ids == (2, 1)  # generation_config.json has the say
    edit(folder / "generation_config.json", eos_token_id=[4, 2])
    assert Checkpoint.open(folder).stop_token_ids == (4, 2, 1)
    edit(folder / "generation_config.json", eos_token_id=None)
    assert Checkpoint.open(folder).stop_token_ids == (1, 4)
    (folder / "generation_config.json").unlink()
    assert Checkpoint.open(folder).stop_token_ids == (1, 4)
    assert open_source(folder, "dummy").stop_token_ids == (1, 4)


def test_each_listed_id_ends_a_text(folder):
    params = SamplingParams(temperature=0, max_tokens=8)
    ids = LLM(folder, memory_bytes=8 << 20).generate("吾輩は", params, use_tqdm=False)
    third = ids[0].outputs[0].token_ids[2]
    edit(folder / "generation_config.json", eos_token_id=[2, third])
    (output,) = LLM(folder, memory_bytes=8 << 20).generate("吾輩は", params, use_tqdm=False)
    assert output.outputs[0].token_ids[-1] == third
    assert output.outputs[0].stop_reason == third


@pytest.mark.parametrize("wrong", [5120, -1, [2, 999_999], True, [2, True], "2", 2.0, {}, [[2]]])
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_a_stop_id_outside_the_vocabulary_is_refused_by_name(folder, file, wrong):
    edit(folder / file, eos_token_id=wrong)
    with pytest.raises((CheckpointError, ConfigError), match="eos_token_id must be") as caught:
        LLM(folder)
    assert str(folder / file) in str(caught.value)
    assert "0 to 5,119" in str(caught.value)


@pytest.mark.parametrize("make", ["folder", "link", "list"])
def test_a_file_that_is_there_and_cannot_be_read_is_not_passed_over(folder, make):
    path = folder / "generation_config.json"
    path.unlink()
    if make == "folder":
        path.mkdir()
    elif make == "link":
        path.symlink_to("nowhere")
    else:
        path.write_text("[]")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        Checkpoint.open(folder)


# --- sampling ------------------------------------------------------------------------------------


def test_defaults_apply_where_no_parameters_are_given(folder):
    edit(folder / "generation_config.json", **GREEDY)
    llm = LLM(folder, memory_bytes=8 << 20)
    wanted = SamplingParams(temperature=0, max_tokens=7, top_k=3, repetition_penalty=1.5)
    assert llm.get_default_sampling_params() == wanted
    (output,) = llm.generate("吾輩は", use_tqdm=False)
    (same,) = llm.generate("吾輩は", wanted, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 7
    assert output.outputs[0].token_ids == same.outputs[0].token_ids
    # Whoever gives parameters means all of them, as in vLLM.
    (own,) = llm.generate("吾輩は", SamplingParams(max_tokens=3, seed=1), use_tqdm=False)
    assert len(own.outputs[0].token_ids) == 3


def test_a_server_applies_them_where_a_client_says_nothing(folder):
    edit(folder / "generation_config.json", **GREEDY)
    service = Service(AsyncLLM(folder), ServerConfig(model_name="m"))
    config, message = service.config, [{"role": "user", "content": "x"}]
    silent = ChatRequest.model_validate({"model": "m", "messages": message})
    params = chat_params(silent, config, 100)
    wanted = SamplingParams(temperature=0, max_tokens=100, top_k=3, repetition_penalty=1.5)
    assert params == wanted
    said = {"temperature": 0.5, "top_k": 0, "repetition_penalty": 1.0}
    outspoken = ChatRequest.model_validate({"model": "m", "messages": message, **said})
    params = chat_params(outspoken, config, 100)
    assert (params.temperature, params.top_k, params.repetition_penalty) == (0.5, 0, 1.0)
    nulls = dict.fromkeys(said)
    assert chat_params(silent.model_copy(update=nulls), config, 100) == wanted


def test_a_server_gives_as_many_tokens_as_they_say_unless_the_client_says(folder):
    edit(folder / "generation_config.json", max_new_tokens=7)
    service = Service(AsyncLLM(folder), ServerConfig(model_name="m"))
    service.llm = SimpleNamespace(max_model_len=100)  # type: ignore[assignment]
    assert service.max_tokens([1] * 10, None) == 7
    assert service.max_tokens([1] * 96, None) == 4
    assert service.max_tokens([1] * 10, 50) == 50


def test_neutral_defaults_or_those_of_another_folder_can_be_chosen(folder, tmp_path_factory):
    edit(folder / "generation_config.json", **GREEDY, eos_token_id=4)
    neutral = open_source(folder, generation_config="vllm")
    assert neutral.sampling == {}
    assert neutral.stop_token_ids == (4, 1)
    other = tmp_path_factory.mktemp("other")
    edit(other / "generation_config.json", min_p=0.5)
    assert open_source(folder, generation_config=str(other)).sampling == {"min_p": 0.5}
    assert open_source(folder, "dummy").sampling == {}
    with pytest.raises(CheckpointError, match="generation_config='nowhere': expected 'auto'"):
        open_source(folder, generation_config="nowhere")


def test_without_the_file_defaults_are_those_of_the_class(folder):
    (folder / "generation_config.json").unlink()
    assert open_source(folder).sampling == {}


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("temperature", -1),
        ("temperature", "0"),
        ("temperature", True),
        ("top_k", 2.5),
        ("top_k", -2),
        ("top_p", 0),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
    ],
)
def test_impossible_defaults_are_refused_by_name(folder, key, wrong):
    edit(folder / "generation_config.json", **{key: wrong})
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {key}"):
        Checkpoint.open(folder)
