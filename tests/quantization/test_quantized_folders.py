"""Folders whose weights are quantized: written, read back, and read from others.

Invariant tested: what is written is what is served, bit by bit; what another tool wrote in the same
convention is understood; what is not understood is refused by name.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from plamo_ref import LLM, SamplingParams
from plamo_ref.cli import cli
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.source import open_source
from plamo_ref.intake.checkpoint_files import CheckpointError
from plamo_ref.intake.config_values import ConfigError
from plamo_ref.intake.hub import find
from plamo_ref.intake.quantization_config import quantization_config, scheme_of
from plamo_ref.kernels.choice import TORCH
from plamo_ref.parallel.model import load_stored
from plamo_ref.proof.ranks import Meeting, ThreadGroup
from plamo_ref.quantization.folder import from_words, to_words
from plamo_ref.quantization.quantize import dequantize, quantize
from plamo_ref.quantization.schemes import SCHEMES, is_quantized
from plamo_ref.quantization.weight import QuantizedWeight
from plamo_ref.weights.checkpoint import Checkpoint, save
from plamo_ref.weights.loading import StoredWeights, load_model

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
NAME = "model.layers.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return Checkpoint.open(find("tiny"))


@pytest.fixture(scope="module", params=SCHEMES)
def written(request, tiny, tmp_path_factory) -> tuple[str, Path]:
    """A scheme, and the embedded model written by it."""
    folder = tmp_path_factory.mktemp(request.param)
    save(folder, tiny.config, tiny.tensors(progress=False), quantization=request.param)
    return request.param, folder


def weights_of(model, layer: int = 1) -> dict[str, object]:
    layer = model.layers[layer]
    linears = {"qkv": layer.mixer.qkv_proj, "o": layer.mixer.o_proj}
    linears |= {"gate_up": layer.gate_up_proj, "down": layer.down_proj}
    return {name: linear.weight for name, linear in linears.items()}


def same(one, other) -> bool:
    values = [w.values.view(torch.uint8) for w in (one, other)]
    return torch.equal(*values) and torch.equal(one.scale, other.scale)


def test_a_written_folder_is_served_without_a_flag_and_is_what_the_flag_makes(written, tiny):
    name, folder = written
    place = {"dtype": torch.float32, "device": CPU}
    asked = load_model(tiny, TORCH, quantization=name, **place)
    source = open_source(folder)
    assert source.config.quantization == name
    found = source.load(TORCH, torch.float32, CPU)
    for key, weight in weights_of(found).items():
        assert isinstance(weight, QuantizedWeight)
        assert same(weight, weights_of(asked)[key]), key
        assert replace(weight, values=None, scale=None) == replace(
            weights_of(asked)[key], values=None, scale=None
        )
    assert torch.equal(found.embedding, asked.embedding)


def test_readers_of_plain_weights_get_what_the_stored_ones_stand_for(written, tiny):
    name, folder = written
    stored = Checkpoint.open(folder)
    truth = dequantize(quantize(tiny.read(NAME, dtype=torch.float32), SCHEMES[name]), torch.float32)
    assert torch.equal(stored.read(NAME, dtype=torch.float32), truth)
    assert torch.equal(stored.read_slice(NAME, slice(3, 9), dtype=torch.float32), truth[3:9])
    assert {n for n, _ in stored.tensors(progress=False)} == set(tiny.names)


def test_a_rank_has_its_part_of_a_stored_folder(written):
    name, folder = written
    weights, place = StoredWeights(Checkpoint.open(folder)), (TORCH, torch.float32, CPU)
    if name == "int4":  # the embedded model's heads are narrower than a group
        with pytest.raises(EngineError, match="groups of 128 columns"):
            load_stored(weights, ThreadGroup(Meeting(2), 0), *place)
        return
    whole = weights(*place).layers[1].down_proj.weight
    ranks = [load_stored(weights, ThreadGroup(Meeting(2), n), *place) for n in range(2)]
    parts = [dequantize(rank.layers[1].down_proj.weight, torch.float32) for rank in ranks]
    assert torch.equal(torch.cat(parts, 1), dequantize(whole, torch.float32))


def test_the_command_writes_a_folder_with_its_tokenizer(tmp_path):
    folder = tmp_path / "small"
    result = CliRunner().invoke(cli, ["quantize", "--scheme", "int4", str(folder)])
    assert result.exit_code == 0, result.output
    assert "bytes of weights" in result.output
    with LLM(folder, device="cpu", memory_bytes=32 << 20) as llm:
        (output,) = llm.generate("吾輩は", GREEDY, use_tqdm=False)
    with LLM("tiny", quantization="int4", device="cpu", memory_bytes=32 << 20) as llm:
        (truth,) = llm.generate("吾輩は", GREEDY, use_tqdm=False)
    assert output.outputs[0].text == truth.outputs[0].text
    again = CliRunner().invoke(
        cli, ["quantize", "--scheme", "fp8", "--model", str(folder), str(tmp_path / "other")]
    )
    assert "quantized already (int4)" in again.output
    itself = CliRunner().invoke(cli, ["quantize", "--scheme", "fp8", str(find("tiny"))])
    assert "is the model itself" in itself.output


@pytest.mark.parametrize("bits", [4, 8])
def test_words_have_neighbouring_columns_from_their_lowest_bits_on(bits):
    """Against numpy's idea of the same: bytes in little-endian order."""
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    numbers = torch.randint(low, high + 1, (3, 48), generator=torch.Generator().manual_seed(0))
    words = to_words(numbers, bits)
    unsigned = (numbers + (1 << bits - 1)).numpy().astype(np.uint8)
    told = unsigned if bits == 8 else unsigned[:, ::2] | unsigned[:, 1::2] << 4
    assert np.array_equal(words.numpy(), np.ascontiguousarray(told).view("<i4"))
    assert torch.equal(from_words(words, bits).long(), numbers)
    assert torch.equal(from_words(to_words(numbers[:, :5], bits), bits)[:, :5], numbers[:, :5])


# --- folders of others ----------------------------------------------------------------------------


def foreign(folder: Path, tiny: Checkpoint, scheme: str, change=lambda tensors: tensors) -> Path:
    """A folder as a tool writes it that takes every linear layer: those that stay plain here, too;
    and leaves one product out."""
    tensors, shape = {}, tiny.config.tensor_shapes
    for name, tensor in tiny.tensors(progress=False):
        ours = is_quantized(name, shape[name], SCHEMES[scheme])
        if name.endswith("_proj.weight") and name != NAME and (ours or scheme == "int8"):
            weight = quantize(tensor, SCHEMES[scheme])
            tensors[name] = weight.numbers if weight.format == "int8" else weight.values
            tensors[f"{name}_scale"] = weight.scale[:, None].bfloat16()
        else:
            tensors[name] = tensor
    told = quantization_config(SCHEMES[scheme], shape)
    config = tiny.config.to_dict() | {"quantization_config": told}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(change(tensors), folder / "model.safetensors")
    return folder


def test_what_another_tool_quantized_is_taken_as_it_is(tiny, tmp_path):
    """int8 that is not packed, scales in bfloat16, bcdt and dt quantized, a product that is not."""
    checkpoint = Checkpoint.open(foreign(tmp_path, tiny, "int8"))
    model = StoredWeights(checkpoint)(TORCH, torch.float32, CPU)
    stored = load_file(tmp_path / "model.safetensors")

    def truth(name):
        return stored[name].float() * stored[f"{name}_scale"].float()

    first = "model.layers.layers.0.mixer."
    in_proj = model.layers[0].mixer.in_proj.weight
    assert isinstance(in_proj, QuantizedWeight)
    assert torch.equal(dequantize(in_proj, torch.float32), truth(f"{first}in_proj.weight"))
    assert torch.equal(model.layers[0].mixer.bcdt_proj.weight, truth(f"{first}bcdt_proj.weight"))
    dt = model.layers[0].mixer.selection.dt_weight
    assert torch.equal(dt, truth(f"{first}dt_proj.weight"))
    assert torch.equal(model.layers[1].down_proj.weight, tiny.read(NAME, dtype=torch.float32))


@pytest.mark.parametrize(
    ("scheme", "changed", "said"),
    [
        ("int8", {f"{NAME}_scale": torch.ones(3, 1)}, "down_proj.*as int8 stores it"),
        ("int8", {"x.weight_zero_point": torch.ones(1)}, "only the"),
        ("fp8", {NAME: torch.full((192, 384), float("nan")).to(torch.float8_e4m3fn)}, "dtype"),
    ],
    ids=["scales", "extra", "kind"],
)
def test_a_broken_folder_is_refused_with_the_tensors_name(scheme, changed, said, tiny, tmp_path):
    folder = foreign(tmp_path, tiny, scheme, lambda tensors: tensors | changed)
    with pytest.raises(CheckpointError, match=said):
        StoredWeights(Checkpoint.open(folder))(TORCH, torch.float32, CPU)


def test_nan_zero_points_and_orders_are_refused(tiny, tmp_path):
    name = "model.layers.layers.0.mixer.in_proj.weight"

    def with_nan(tensors):
        tensors[name].view(torch.uint8)[0, 0] = 127
        return tensors

    folder = foreign(tmp_path / "a", tiny, "fp8", with_nan)
    with pytest.raises(CheckpointError, match=r"in_proj.*NaN"):
        Checkpoint.open(folder).read(name)
    for part in ("zero_point", "g_idx"):
        extra = {f"{name}_{part}": torch.zeros(1)}
        folder = foreign(tmp_path / part, tiny, "int8", lambda t, e=extra: t | e)
        with pytest.raises(CheckpointError, match=f"{part}.*symmetric"):
            Checkpoint.open(folder)


def test_a_quantized_folder_is_not_quantized_again(written):
    name, folder = written
    assert open_source(folder, *EngineConfig(quantization=name).source).config.quantization == name
    other = "int8" if name != "int8" else "int4"
    with pytest.raises(CheckpointError, match=f"{name} already: leave it out"):
        open_source(folder, *EngineConfig(quantization=other).source)


@pytest.mark.parametrize("name", SCHEMES)
def test_what_is_written_of_a_scheme_is_understood(name):
    told = quantization_config(SCHEMES[name], Plamo2Config().tensor_shapes)
    assert scheme_of(json.loads(json.dumps(told)), "config.json") == name
    assert told["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert any(module.endswith("bcdt_proj") for module in told["ignore"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quant_method": "gptq"}, r"quant_method='gptq' is not read.*bfloat16.*int4"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({"config_groups": {}}, "config_groups="),
        ({"weights": {"symmetric": False}}, "zero point"),
        ({"weights": {"num_bits": 3}}, "num_bits=3"),
        ({"weights": {"group_size": 16}}, "group_size=16: 32, 64 and 128"),
        ({"input_activations": {"num_bits": 8, "type": "int"}}, "input_activations can be e4m3"),
        ({"output_activations": {"num_bits": 8}}, "output_activations"),
    ],
    ids=str,
)
def test_a_scheme_of_others_is_refused_by_name_and_cure(change, said):
    told = quantization_config(SCHEMES["int4"], Plamo2Config().tensor_shapes)
    group = told["config_groups"]["group_0"]
    for key, value in change.items():
        if key == "weights":
            group["weights"] |= value
        elif key in group:
            group[key] = value
        else:
            told[key] = value
    data = Plamo2Config().to_dict() | {"quantization_config": told}
    with pytest.raises(ConfigError, match=said):
        Plamo2Config.from_dict(data)
