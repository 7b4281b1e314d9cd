"""The checkpoints of the makers, as far as their files are public: each is served exactly.

The configs are those of family.toml; widths are divided so that weights can be made up. What others
have made of the checkpoints is named, with the place of the original.

Invariant tested: each variant loads as its config.json stands, gives the reference's tokens and
log probabilities in float64, ends where its texts end, and is planned at its full size.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from noise import BOS, EOS, OP, noise_rows
from safetensors.torch import load_file, save_file

from plamo_ref import LLM, SamplingParams
from plamo_ref.config import ConfigError, Plamo2Config
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.memory.device_bytes import plan_device
from plamo_ref.intake.checkpoint_files import CheckpointError
from plamo_ref.intake.conversions import PUBLISHED, original_of
from plamo_ref.intake.hub import HubError, find
from plamo_ref.proof.lab import random_tensors
from plamo_ref.reference import Plamo2Reference, generate_ids
from plamo_ref.sampling.logprobs import token_logprobs
from plamo_ref.text.tokenizer import Plamo2Tokenizer
from plamo_ref.weights.checkpoint import Checkpoint

FAMILY: Mapping[str, dict[str, Any]] = tomllib.loads(
    (Path(__file__).parent / "family.toml").read_text()
)
EMPTY_SHARD = b'\x20\0\0\0\0\0\0\0{"__metadata__":{"format":"pt"}}'  # 40 bytes, as the 1B's last
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "hidden_size_per_head": 8,
    "mamba_num_heads": 4,
    "mamba_d_state": 8,
    "attention_window_size": 6,
}
PROMPT = [BOS, *range(261, 284)]  # longer than the window


def small(told: Mapping[str, Any]) -> dict[str, Any]:
    """The same config.json with less of everything that is only size."""
    if "text_config" in told:
        return {**told, "text_config": small(told["text_config"])}
    layers = min(told["num_hidden_layers"], 6)
    heads = told["num_attention_heads"] // 8
    keys = {"num_hidden_layers": layers, "num_attention_heads": heads}
    keys["num_key_value_heads"] = max(1, told["num_key_value_heads"] // 2)
    if "full_attention_idx" in told:
        keys["full_attention_idx"] = [layer % layers for layer in told["full_attention_idx"]]
    rows = len(noise_rows())
    padding = told["vocab_size"] - 100_000
    return {**told, **SMALL, **keys, "vocab_size": rows + padding, "pad_token_id": 3}


@cache
def folder_of(name: str, root: Path) -> Path:
    """A folder of this variant: sharded, with an empty shard, and a tower if it is to see."""
    told = small(FAMILY[name])
    folder = root / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(told))
    tensors = dict(random_tensors(Plamo2Config.from_dict(told), torch.float32))
    if "text_config" in told:
        tensors["vision_model.vision_encoder.model.embeddings.patch.weight"] = torch.ones(3, 5)
        tensors["image_proj.linear1.weight"] = torch.full((2, 2), math.nan)
    names, files = list(tensors), {}
    for number, part in enumerate((names[:7], names[7:])):
        file = f"model-0000{number + 1}-of-00003.safetensors"
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(part, file)
    (folder / "model-00003-of-00003.safetensors").write_bytes(EMPTY_SHARD)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    Plamo2Tokenizer(noise_rows(), add_bos=True).save(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("family")


def engine(folder: Path, **options: Any) -> LLM:
    return LLM(folder, dtype="float64", device="cpu", memory_bytes=4 << 20, **options)


# --- each is served ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_a_variant_loads_as_it_is_published_and_equals_the_reference(name, root):
    folder = folder_of(name, root)
    reference = Plamo2Reference.from_pretrained(folder, torch.float64).requires_grad_(False)
    assert len(EMPTY_SHARD) == 40
    llm = engine(folder, max_num_batched_tokens=9, block_size=4)
    params = SamplingParams(
        temperature=0, max_tokens=9, logprobs=2, prompt_logprobs=2, ignore_eos=True
    )
    (output,) = llm.generate({"prompt_token_ids": PROMPT}, params, use_tqdm=False)
    ids = list(output.outputs[0].token_ids)
    assert ids == list(generate_ids(reference, PROMPT, params))
    truth = reference.run(torch.tensor([*PROMPT, *ids])).logits[:-1]
    expected = token_logprobs(truth, [*PROMPT[1:], *ids], 2)
    got = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
    for place, (one, token) in enumerate(zip(got, [*PROMPT[1:], *ids], strict=True)):
        assert abs(one[token].logprob - expected[place].logprob) < 1e-10


def test_two_bases_and_layers_without_a_window_are_what_the_config_says():
    for name, kinds in (("plamo-2.1-8b-cpt", 16), ("plamo-2.1-8b-vl", 16)):
        config = Plamo2Config.from_dict(FAMILY[name])
        full = [i for i, kind in enumerate(config.layer_kinds) if kind == "full"]
        assert full == [3, 17]
        assert [config.theta(i) for i in (1, 3)] == [1e4, 1e6]
        assert config.layer_kinds.count("mamba") == kinds
    assert Plamo2Config.from_dict(FAMILY["plamo-2-1b"]).theta(1) == 1e4
    assert Plamo2Config.from_dict(FAMILY["plamo-2-translate"]).theta(1) == 1e6


@pytest.mark.parametrize("name", FAMILY)
def test_a_variant_is_planned_at_its_full_size(name):
    """Nothing is allocated: a plan is numbers, and 10,485,760 positions are not one of them."""
    config = Plamo2Config.from_dict(FAMILY[name])
    assert config.max_position_embeddings == 10_485_760
    plan = plan_device(config, EngineConfig(dtype="bfloat16"), 80 * 10**9, torch.bfloat16)
    assert plan.max_num_seqs == (34 if config.attention_window_size > 2048 else 64)
    assert plan.total_bytes + config.weight_bytes() < 80 * 10**9
    assert plan.num_slots == plan.max_num_seqs + 1
    longest = plan_device(
        config, EngineConfig(max_model_len=32_768), 80 * 10**9, torch.bfloat16
    ).new_cache()
    assert longest.longest_request() >= 32_768


def test_sizes_are_those_of_the_published_files():
    config = {name: Plamo2Config.from_dict(told) for name, told in FAMILY.items()}
    one, translate = config["plamo-2-1b"], config["plamo-2-translate"]
    assert (one.num_parameters, len(one.tensor_shapes)) == (1_291_441_920, 218)
    assert round(one.weight_bytes(4) / 1e9, 3) == 5.166  # 5.165 GB of shards, 7 of them
    assert (translate.weight_bytes(2), len(translate.tensor_shapes)) == (19_056_470_016, 435)
    assert 0 < 19_056_520_928 - translate.weight_bytes(2) < 100_000  # four shards: their headers
    assert round(config["plamo-2-8b"].num_parameters / 1e9, 3) == 9.118


def test_bfloat16_translate_needs_fewer_bits_on_a_card_of_16_gb():
    config = Plamo2Config.from_dict(FAMILY["plamo-2-translate"])
    options = EngineConfig(max_model_len=2000, max_num_batched_tokens=2000, max_num_seqs=16)
    with pytest.raises(ValueError, match="take a larger device"):
        plan_device(config, options, 16 * 10**9, torch.bfloat16)
    few = replace(config, quantization="int8")
    assert plan_device(few, options, 16 * 10**9, torch.bfloat16).max_num_seqs == 16


# --- where a text ends ---------------------------------------------------------------------------


def forced(llm: LLM, token: int, **options: Any) -> tuple[list[int], Any]:
    """What comes of a prompt whose next token is `token`, whatever the model likes."""
    params = SamplingParams(temperature=0, max_tokens=3, logit_bias={token: 1000.0}, **options)
    (output,) = llm.generate({"prompt_token_ids": PROMPT}, params, use_tqdm=False)
    return list(output.outputs[0].token_ids), output.outputs[0].stop_reason


def test_a_document_ends_where_the_next_begins(root):
    llm = engine(folder_of("plamo-2-1b", root))
    assert llm.stop_token_ids == (EOS, BOS)
    assert forced(llm, BOS) == ([BOS], BOS)
    assert forced(llm, EOS)[0] == [EOS]
    assert forced(llm, BOS, ignore_eos=True)[0] == [BOS] * 3


@pytest.mark.parametrize("own", ["{{ messages[0].content }}", None])
def test_a_chat_stops_at_a_block_whatever_template_the_checkpoint_brings(root, tmp_path, own):
    assert engine(folder_of("plamo-2-translate", root)).stop_token_ids == (BOS, OP)
    llm = engine(folder_of("plamo-2-8b", root))  # its files do not name the block's token
    (tmp_path / "own.jinja").write_text(own or "")
    template = "translate" if own is None else str(tmp_path / "own.jinja")
    talk, ended = [{"role": "user", "content": "cat"}], []
    for ignore_eos in (False, True):
        params = SamplingParams(
            temperature=0, max_tokens=3, logit_bias={OP: 1000.0}, ignore_eos=ignore_eos
        )
        (answer,) = llm.chat(talk, params, use_tqdm=False, chat_template=template)
        ended.append(list(answer.outputs[0].token_ids))
    assert ended == [[OP], [OP] if own is None else [OP] * 3]


def test_the_stop_string_of_the_card_is_the_token(root):
    llm = engine(folder_of("plamo-2-8b", root))
    ids, reason = forced(llm, OP, stop=["<|plamo:op|>"])
    assert (ids, reason) == ([OP], "<|plamo:op|>")


# --- with eyes -----------------------------------------------------------------------------------


def test_the_names_of_a_language_model_inside_may_have_a_prefix(root, tmp_path):
    folder = folder_of("plamo-2.1-8b-vl", root)
    plain = Checkpoint.open(folder)
    tensors = {f"language_model.{n}": t for n, t in plain.tensors(progress=False)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    inside = Checkpoint.open(tmp_path)
    assert inside.names == plain.names
    assert all(torch.equal(inside.read(n), plain.read(n)) for n in plain.names)
    assert inside.stop_token_ids == (1, 2)


def test_the_keys_of_a_language_model_may_stand_beside_the_others():
    told = FAMILY["plamo-2.1-8b-vl"]
    flat = {**told, **told["text_config"], "model_type": "plamo2vl"}
    del flat["text_config"]
    assert Plamo2Config.from_dict(flat) == Plamo2Config.from_dict(told)
    with pytest.raises(ConfigError, match="text_config must be an object, not 3"):
        Plamo2Config.from_dict({**told, "text_config": 3})


# --- what others made of them, and other models --------------------------------------------------


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("someone/plamo-2-translate-gguf", "pfnet/plamo-2-translate"),
        ("mlx-community/plamo-2-1b-4bit", "pfnet/plamo-2-1b"),
        ("x/PLaMo-2.1-8b-cpt-Q4_K_M.gguf", "pfnet/plamo-2.1-8b-cpt"),
        (
            "/cache/models--x--plamo-2-translate-eval-mlx/snapshots/0",
            "pfnet/plamo-2-translate-eval",
        ),
        ("x/mine", "the makers' own, such as pfnet/plamo-2-1b"),
    ],
)
def test_a_copy_s_name_tells_of_its_original(name, original):
    assert original_of(name) == original
    assert len(set(PUBLISHED)) == 9


def test_a_gguf_is_named(tmp_path):
    folder = tmp_path / "plamo-2-translate-gguf"
    folder.mkdir()
    file = folder / "plamo-2-translate-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    said = r"GGUF, llama\.cpp's format: take the original, pfnet/plamo-2-translate"
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.open(folder)
    with pytest.raises(HubError, match=said):
        find(str(file))
    (folder / "config.json").write_text(json.dumps(small(FAMILY["plamo-2-1b"])))
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.open(folder)


def test_mlx_s_weights_are_named(root, tmp_path):
    source, folder = folder_of("plamo-2-1b", root), tmp_path / "plamo-2-1b-4bit"
    folder.mkdir()
    told = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"eos_token_id": [1, 4]}))
    tensors: dict[str, torch.Tensor] = {}
    for file in source.glob("*.safetensors"):
        tensors |= load_file(file)
    turned = {
        name: tensor.transpose(1, 2).contiguous() if "conv1d" in name else tensor
        for name, tensor in tensors.items()
    }
    save_file(turned, folder / "model.safetensors", metadata={"format": "mlx"})
    with pytest.raises(
        CheckpointError, match="MLX's order of axes: take pfnet/plamo-2-1b, or swap"
    ):
        Checkpoint.open(folder)
    bits = {"quantization": {"group_size": 64, "bits": 4}}
    (folder / "config.json").write_text(json.dumps(told | bits))
    with pytest.raises(ConfigError, match=r"MLX's quantized weights .* pfnet/plamo-2-1b$"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("plamo", "an embedding model"), ("plamo3", "PLaMo 3: no Mamba"), ("llama", "'llama', exp")],
)
def test_another_model_is_refused_by_what_it_is(kind, said):
    with pytest.raises(ConfigError, match=f"model_type is '{kind}'.*expected 'plamo2'") as caught:
        Plamo2Config.from_dict({**FAMILY["plamo-2-1b"], "model_type": kind})
    assert said in str(caught.value)
    bi = {**FAMILY["plamo-2-1b"], "architectures": ["PlamoBiModel"]}
    with pytest.raises(ConfigError, match="this engine continues texts"):
        Plamo2Config.from_dict(bi)
