"""The options of the commands are the fields of `EngineConfig`, said once.

Invariant tested: `serve` has every field that is not named as deliberately none, with the field's
default, and passes it on; the other commands' options of the same names are the same.
"""

import dataclasses
from typing import Any

import click
import pytest

from plamo_ref import cli
from plamo_ref.cluster import serving
from plamo_ref.commands import _engine_options as engine_options
from plamo_ref.commands import serve as serve_module
from plamo_ref.engine import llm
from plamo_ref.engine.config import EngineConfig
from plamo_ref.errors import PlamoRefError
from plamo_ref.remote import async_llm

FIELDS = {field.name: field for field in dataclasses.fields(EngineConfig)}
# What nobody would get by leaving the option out, and what is written for it.
OTHER: dict[str, tuple[list[str], Any]] = {
    "load_format": (["--load-format", "dummy"], "dummy"),
    "quantization": (["--quantization", "int8"], "int8"),
    "dtype": (["--dtype", "float64"], "float64"),
    "device": (["--device", "cuda:1"], "cuda:1"),
    "tensor_parallel_size": (["--tensor-parallel-size", "2"], 2),
    "pipeline_parallel_size": (["--pipeline-parallel-size", "2"], 2),
    "disable_custom_all_reduce": (["--no-disable-custom-all-reduce"], False),
    "data_parallel_size": (["--data-parallel-size", "2"], 2),
    "block_size": (["--block-size", "4"], 4),
    "max_num_seqs": (["--max-num-seqs", "5"], 5),
    "max_num_batched_tokens": (["--max-num-batched-tokens", "99"], 99),
    "scheduler": (["--scheduler", "v0"], "v0"),
    "chunk_size": (["--chunk-size", "8"], 8),
    "memory_bytes": (["--memory-bytes", "1.5GiB"], 3 << 29),
    "gpu_memory_utilization": (["--gpu-memory-utilization", "0.5"], 0.5),
    "max_model_len": (["--max-model-len", "77"], 77),
    "state_dtype": (["--state-dtype", "bfloat16"], "bfloat16"),
    "kv_cache_dtype": (["--kv-cache-dtype", "fp8"], "fp8"),
    "state_rounding": (["--state-rounding", "stochastic"], "stochastic"),
    "state_replay": (["--state-replay", "8"], 8),
    "seed": (["--seed", "3"], 3),
    "generation_config": (["--generation-config", "vllm"], "vllm"),
    "kernels": (["--kernels", "cache"], "cache"),
    "compile": (["--compile", "all"], "all"),
    "compile_sizes": (["--compile-sizes", "8,32"], [8, 32]),
    "pdl": (["--no-pdl"], False),
    "overlap": (["--overlap"], True),
    "adjust_tables": (["--no-adjust-tables"], False),
    "cuda_graphs": (["--no-cuda-graphs"], False),
    "graph_tokens": (["--graph-tokens", "0"], 0),
    "warm_up_seconds": (["--warm-up-seconds", "1.5"], 1.5),
    "precompile": (["--no-precompile"], False),
    "enable_prefix_caching": (["--enable-prefix-caching"], True),
    "one_arena": (["--one-arena"], True),
    "photographs": (["--no-photographs"], False),
    "max_step_time_ms": (["--max-step-time-ms", "7.5"], 7.5),
    "photograph_interval": (["--photograph-interval", "99"], 99),
    "speculative_config": (
        ["--speculative-config", '{"num_speculative_tokens": 3}'],
        {"num_speculative_tokens": 3},
    ),
    "record": (["--record", "run.jsonl"], "run.jsonl"),
}


def command(*names: str) -> click.Command:
    found: click.Command = cli.cli
    for name in names:
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), name)
    return found


def options(of: click.Command) -> dict[str, click.Option]:
    return {option.name: option for option in of.params if isinstance(option, click.Option)}


def test_every_field_is_an_option_of_serve_or_named_as_none():
    assert {*options(serve_module.serve)} & {*FIELDS} == {*FIELDS}
    assert {*OTHER} == {*FIELDS}


@pytest.mark.parametrize(
    "names", [("serve",), ("generate",), ("chat",), ("bench", "decode"), ("bench", "startup")]
)
def test_an_option_is_its_field(names):
    of = options(command(*names))
    same = {*of} & {*FIELDS} - ({"seed"} if names[0] in ("generate", "chat") else set())
    assert {"dtype", "device"} <= same
    for name in same:
        assert of[name].help == FIELDS[name].metadata["help"]
        assert of[name].opts[0] == "--" + name.replace("_", "-")
    context = command(*names).make_context("x", ["--prompt", "x"] if names == ("generate",) else [])
    for name in same:
        given = context.params[name]
        default = FIELDS[name].default
        assert given == (list(default) if default == () else default), name


def test_every_field_has_its_line_of_help_and_a_valid_default():
    assert all(field.metadata["help"].endswith(".") for field in FIELDS.values())
    EngineConfig()


def test_serve_passes_every_option_on(monkeypatch):
    """One by one, so that no option can have another's value; together they could not be."""
    seen: dict[str, Any] = {}

    class Noted:
        def __init__(self, model: str, **given: Any) -> None:
            seen.clear()
            seen.update(given)
            raise PlamoRefError("enough")

    monkeypatch.setattr(async_llm, "AsyncLLM", Noted)
    cli.main(["serve"])
    usual = dict(seen)
    assert {*FIELDS} <= {*usual}
    for name, (words, value) in OTHER.items():
        if name != "data_parallel_size":  # below
            assert cli.main(["serve", *words]) == 2
            assert seen == usual | {name: value}


def test_serve_with_replicas_puts_the_same_on_ray(monkeypatch):
    seen: list[Any] = []
    monkeypatch.setattr(serving, "serve", lambda what, **more: seen.extend((what, more["address"])))
    options = ["--max-num-seqs", "5", "--engine-restarts", "1", "--drain-seconds", "2"]
    for words, size, address in (
        (["--data-parallel-size", "2"], 2, None),
        (["--address", "auto"], 1, "auto"),
    ):
        seen.clear()
        assert cli.main(["serve", "--api-key", "k", *options, *words]) == 0
        what, where = seen
        assert (what.engine, where) == (
            EngineConfig(max_num_seqs=5, data_parallel_size=size),
            address,
        )
        assert (what.model, what.server.api_keys, what.drain_seconds) == ("tiny", ("k",), 2)
        assert what.client["max_restarts"] == 1


@pytest.mark.parametrize("words", [["generate", "--prompt", "x"], ["chat"]])
def test_generate_and_chat_pass_every_option_of_the_engine_on(monkeypatch, words):
    seen: dict[str, Any] = {}

    class Noted:
        def __init__(self, model: str, **given: Any) -> None:
            seen.update(given)
            raise PlamoRefError("enough")

    monkeypatch.setattr(llm, "LLM", Noted)
    usual = {"revision": None, "offline": False}
    for name in engine_options.ONE_REQUEST:
        seen.clear()
        assert cli.main([*words, *OTHER[name][0]]) == 2
        defaults = {each: FIELDS[each].default for each in engine_options.ONE_REQUEST}
        assert seen == usual | defaults | {name: OTHER[name][1]}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--block-size", "0"], "block_size must be 1 or more"),
        (["--gpu-memory-utilization", "2"], "gpu_memory_utilization must be"),
        (["--chunk-size", "8"], "chunk_size belongs to scheduler='v0'"),
        (["--kernels", "fast"], "--kernels"),
        (["--compile-sizes", "a,b"], "expected numbers, as in 8,32,128"),
        (["--memory-bytes", "much"], "is not a size"),
        (["--dtype", "float16"], "--dtype"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys, words, says):
    assert cli.main(["serve", *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_a_name_that_is_no_field_is_noticed():
    with pytest.raises(AssertionError, match="blocksize"):
        engine_options.engine_options("blocksize")
    with pytest.raises(AssertionError, match="records"):
        engine_options.names(but=("records",))
