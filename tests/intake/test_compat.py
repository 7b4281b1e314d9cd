"""vLLM's keywords: accepted with one line of notice, translated, or refused by name.

Invariant tested: none is dropped without a word, and none ends in a bare TypeError.
"""

import dataclasses
import logging
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from junk import JUNK, outcome

from plamo_ref import LLM, EngineConfig, SamplingParams
from plamo_ref.commands import _vllm_options
from plamo_ref.commands.serve import serve
from plamo_ref.engine.config import EngineError
from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.prompts import PromptError
from plamo_ref.intake.vllm_names import CALL, ENGINE, MODEL, SAMPLING
from plamo_ref.remote.async_llm import AsyncLLM
from plamo_ref.sampling import GuidedError, GuidedParams, SamplingError
from plamo_ref.server import run

SMALL = {"device": "cpu", "memory_bytes": 4_000_000}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", **SMALL)


def lines(caplog) -> list[str]:
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


def test_the_snippet_of_the_translation_models_card_runs(caplog):
    llm = LLM(model="tiny", trust_remote_code=True, max_model_len=2000, max_num_batched_tokens=2000)
    params = SamplingParams(temperature=0, max_tokens=8, stop=["<|plamo:op|>"])
    (output,) = llm.generate(["吾輩は"], sampling_params=params)
    assert output.outputs[0].text
    assert llm.config.max_model_len == 2000
    (notice,) = lines(caplog)
    assert "trust_remote_code=True changes nothing" in notice


def test_what_changes_nothing_is_accepted_with_one_line(caplog):
    llm = LLM(
        "tiny",
        trust_remote_code=False,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        quantization=None,
        tokenizer="tiny",
        tokenizer_mode="auto",
        enable_prefix_caching=True,
        swap_space=4,
        disable_log_stats=True,
        enforce_eager=True,
        seed=None,
        **SMALL,
    )
    assert llm.config == EngineConfig(**SMALL, cuda_graphs=False, enable_prefix_caching=True)
    (notice,) = lines(caplog)
    assert "\n" not in notice
    for part in ("tokenizer='tiny'", "swap_space=4", "enforce_eager=True is taken as cuda_graphs"):
        assert part in notice


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        ({"data_parallel_size": 0}, "data_parallel_size must be 1 or more"),
        ({"data_parallel_size": True}, "data_parallel_size must be an integer, 1 or more"),
        ({"enable_expert_parallel": True}, "the model has no experts"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size must be 1 or more"),
        ({"tensor_parallel_size": True}, "tensor_parallel_size must be an integer, 1 or more"),
        ({"quantization": "awq"}, 'quantization must be "fp8", .*"int4"'),
        ({"tokenizer": "other/model"}, "tokenizer is the checkpoint's own"),
        ({"enable_lora": True}, "merge them into the checkpoint"),
        ({"compilation_config": 3}, "compile_sizes"),
        ({"download_dir": "/tmp"}, "cache_dir"),
        ({"speculative_config": {"model": "x"}}, "drafts come from the text itself"),
        ({"enable_chunked_prefill": False}, 'scheduler="v0"'),
        ({"enforce_eager": True, "cuda_graphs": True}, "enforce_eager is cuda_graphs here"),
        ({"kv_cache_memory_bytes": 1}, "kv_cache_memory_bytes is memory_bytes here"),
        ({"enforce_eager": "yes"}, "cuda_graphs must be True or False, not 'yes'"),
        ({"max_num_seq": 4}, "did you mean max_num_seqs?"),
        ({"no_such_setting": 1}, "no_such_setting"),
        ({"max_num_seqs": "4"}, "max_num_seqs must be an integer, 1 or more, or None, not '4'"),
        ({"max_num_seqs": 4.0}, "max_num_seqs must be an integer"),
        ({"max_num_seqs": True}, "max_num_seqs must be an integer"),
        ({"seed": "a"}, "seed must be an integer"),
        ({"scheduler": "V1"}, 'scheduler must be "v1" or "v0", not \'V1\''),
        ({"cuda_graphs": "no"}, "cuda_graphs must be True or False"),
        ({"dtype": "half"}, "a T4|the T4"),
        ({"kernels": "cuda"}, "kernels must be"),
        ({"model": 5}, "model must be a text or a path, not 5"),
        ({"model": None}, "model must be a text or a path"),
        ({"revision": 5}, "revision must be"),
        ({"offline": "yes"}, "offline must be True or False"),
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [LLM, AsyncLLM])
def test_what_cannot_be_had_is_refused_by_name_and_cure(make, given, cure):
    with pytest.raises(EngineError, match=cure):
        make(**SMALL | given)


def test_a_device_of_another_kind_is_refused_by_name():
    with pytest.raises(EngineError, match="device='mps': this engine runs on 'cpu' or 'cuda'"):
        LLM("tiny", device="mps")


def test_arguments_without_a_name_are_refused_in_words():
    with pytest.raises(EngineError, match="LLM: too many positional arguments"):
        LLM("tiny", "v1")  # type: ignore[misc]
    with pytest.raises(SamplingError, match="SamplingParams: too many positional"):
        SamplingParams(0.7)  # type: ignore[misc]
    with pytest.raises(EngineError, match="max_requests must be 1 or more"):
        AsyncLLM("tiny", max_requests=0)
    with pytest.raises(EngineError, match="max_restarts must be an integer"):
        AsyncLLM("tiny", max_restarts="3")  # type: ignore[arg-type]


def test_settings_may_be_torchs_own_objects():
    import numpy as np
    import torch

    config = EngineConfig(dtype=torch.float32, device=torch.device("cpu"), max_num_seqs=np.int64(4))  # type: ignore[arg-type]
    assert config == EngineConfig(dtype="float32", device="cpu", max_num_seqs=4)
    assert [type(v) for v in (config.dtype, config.device, config.max_num_seqs)] == [str, str, int]
    assert EngineConfig(max_num_seqs=None, block_size=None, seed=None) == EngineConfig()  # type: ignore[arg-type]
    assert EngineConfig(dtype="float", load_format="safetensors").dtype == "float32"  # type: ignore[arg-type]


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"regex": "[0-9]+"},
        GuidedParams(regex="[0-9]+"),
        SimpleNamespace(json=None, regex="[0-9]+", disable_any_whitespace=False),
    ],
)
@pytest.mark.parametrize("name", ["structured_outputs", "guided_decoding"])
def test_vllms_grammars_become_guided(asked, name, caplog):
    params = SamplingParams(**{name: asked})
    assert params == SamplingParams(guided=GuidedParams(regex="[0-9]+"))
    assert f"{name}=" in lines(caplog)[0]


def test_a_grammar_of_an_unknown_kind_is_refused():
    with pytest.raises(GuidedError, match="structured_outputs must have one of json"):
        SamplingParams(structured_outputs={"structural_tag": "x"})  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        ({"bad_words": ["x"]}, "logit_bias"),
        ({"allowed_token_ids": [1]}, "logit_bias"),
        ({"best_of": 3}, "ask for n"),
        ({"use_beam_search": True}, "no beam search"),
        ({"length_penalty": 0.5}, "no beam search"),
        ({"truncate_prompt_tokens": 5}, "ids yourself"),
        ({"max_token": 5}, "did you mean max_tokens?"),
        ({"guided": {"regex": "a"}}, r"guided must be GuidedParams\(json="),
    ],
    ids=str,
)
def test_parameters_that_cannot_be_had_name_what_can(given, cure):
    with pytest.raises(SamplingError, match=cure):
        SamplingParams(**given)


def test_neutral_parameters_are_accepted_with_one_line(caplog):
    params = SamplingParams(n=2, best_of=None, bad_words=None, detokenize=True, length_penalty=1.0)  # type: ignore[call-arg]
    assert params == SamplingParams(n=2)
    assert len(lines(caplog)) == 1


def test_copies_say_nothing_and_are_equal(caplog):
    params = SamplingParams(seed=1, stop="a", logit_bias={3: 1.0})
    assert dataclasses.replace(params, n=1) == params
    assert lines(caplog) == []


@pytest.mark.parametrize("rules", [ENGINE, MODEL, SAMPLING, CALL])
def test_every_rule_takes_none_and_has_a_cure(rules):
    own = {f.name for kind in (EngineConfig, SamplingParams) for f in dataclasses.fields(kind)}
    assert not rules.keys() & own
    for rule in rules.values():
        assert rule.cure
        if rule.becomes is not None and rules is not SAMPLING:
            assert rule.becomes(None).keys() <= own


# --- calls ---------------------------------------------------------------------------------------


def test_calls_name_the_equivalent_and_take_what_is_neutral(llm, caplog):
    params = SamplingParams(max_tokens=1)
    with pytest.raises(EngineError, match='"prompt_token_ids": ids'):
        llm.generate(prompt_token_ids=[[5, 6]], sampling_params=params)  # type: ignore[call-arg]
    with pytest.raises(PromptError, match="prompts: None"):
        llm.generate()
    with pytest.raises(EngineError, match=r"LLM\.stream has no sampling_param: did you mean"):
        llm.stream("a", sampling_param=params)  # type: ignore[call-arg]
    assert llm.generate("a", params, use_tqdm=False, lora_request=None)  # type: ignore[call-arg]
    assert lines(caplog) == ["LLM.generate: lora_request=None changes nothing"]
    assert not llm.core.requests


# --- anything ------------------------------------------------------------------------------------

NAMES = [f.name for f in dataclasses.fields(SamplingParams)] + list(SAMPLING) + ["nonsense"]
SETTINGS = [f.name for f in dataclasses.fields(EngineConfig)] + list(MODEL) + ["nonsense"]


@given(st.dictionaries(st.sampled_from(NAMES), JUNK, min_size=1, max_size=3))
def test_any_parameters_are_possible_or_refused_and_leave_nothing(llm, given):
    params = outcome(lambda: SamplingParams(**given))
    if isinstance(params, SamplingParams) and params.n <= 3:
        params = dataclasses.replace(params, max_tokens=1, min_tokens=0)
        outcome(lambda: llm.generate("a", params, use_tqdm=False))
    assert not llm.core.requests
    assert not llm._callers.completions


@given(st.dictionaries(st.sampled_from(SETTINGS), JUNK, min_size=1, max_size=3))
def test_any_settings_are_possible_or_refused(given):
    config = outcome(lambda: EngineConfig(**given))
    if isinstance(config, EngineConfig):
        for value in vars(config).values():
            assert type(value) in (int, float, bool, str, tuple, type(None))


@given(JUNK, st.one_of(st.just(SamplingParams(max_tokens=1)), JUNK))
def test_any_prompts_are_completed_or_refused_and_leave_nothing(llm, prompts, params):
    outputs = outcome(lambda: llm.generate(prompts, params, use_tqdm=False))
    assert isinstance(outputs, (list, PlamoRefError))
    assert not llm.core.requests
    assert not llm._callers.completions


# --- the command line ----------------------------------------------------------------------------


def served(monkeypatch, *options: str) -> tuple[AsyncLLM | None, str, int]:
    """The engine that `serve` would have run, what it said, and the exit code."""
    made = []
    monkeypatch.setattr(run, "until_done", lambda serving: None)
    monkeypatch.setattr(
        run, "serve", lambda llm, *_, listening, **__: made.append(llm) or listening("here")
    )
    result = CliRunner().invoke(serve, options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return None, str(result.exception), 1
    return (made or [None])[0], result.output, result.exit_code


def test_serve_takes_vllms_options_after_it_has_said_where_it_listens(monkeypatch):
    options = "--trust-remote-code --tensor-parallel-size 1 --tokenizer tiny --enforce-eager"
    llm, said, code = served(monkeypatch, *options.split())
    assert code == 0
    first, notice = said.splitlines()
    assert first == "listening on here"
    assert "trust_remote_code=True changes nothing" in notice
    assert "enforce_eager=True is taken as cuda_graphs=False" in notice
    assert llm is not None
    assert llm._life._engine["cuda_graphs"] is False


@pytest.mark.parametrize(
    ("option", "value", "cure"),
    [
        ("attention-backend", "FLASHINFER", "kernels="),
        ("preemption-mode", "swap", "computed again"),
    ],
)
def test_serve_names_what_it_cannot_have(monkeypatch, option, value, cure):
    _, said, code = served(monkeypatch, f"--{option}", value)
    assert code == 1
    assert f"{option.replace('-', '_')}=" in said
    assert cure in said


def test_every_option_of_the_command_line_has_one_meaning():
    names = [option for p in serve.params for option in (*p.opts, *p.secondary_opts)]
    assert sorted(set(names)) == sorted(names)
    assert set(_vllm_options.FLAGS) <= MODEL.keys() | _vllm_options.SERVER.keys()


def test_serve_starts_with_the_command_line_that_vllms_server_had(monkeypatch):
    options = "tiny --enable-auto-tool-choice --tool-call-parser hermes --max_model_len=99"
    llm, said, code = served(monkeypatch, *options.split(), "--chat-template-content-format=auto")
    assert (code, llm is not None) == (0, True)
    assert llm._life._engine["max_model_len"] == 99
    assert "enable_auto_tool_choice=True changes nothing (a template" in said
    assert served(monkeypatch, "tiny", "--model", "tiny")[2] == 0
    _, said, code = served(monkeypatch, "tiny", "--model", "other")
    assert code != 0
    assert "give one of the two" in said
    for wrong, cure in (("--reasoning-parser=qwen3", "reasoning"), ("--lora-modules=a", "merge")):
        _, said, code = served(monkeypatch, wrong)
        assert code == 1
        assert wrong.partition("=")[0][2:].replace("-", "_") in said
        assert cure in said
