"""config.json as the ecosystem writes it: other names, other writers, and sizes without sense.

Invariant tested: what changes the numbers has its effect or is refused by name.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo_ref.config import ConfigError, Plamo2Config
from plamo_ref.intake.config_values import FOREIGN, NUMBERS, SIZES
from plamo_ref.intake.hub import find

TINY: dict[str, Any] = json.loads((find("tiny") / "config.json").read_text())


def config_with(*without: str, **keys: Any) -> Plamo2Config:
    """The embedded model's, with these keys changed and those left out."""
    data = {k: v for k, v in (TINY | keys).items() if k not in without}
    return Plamo2Config.from_dict(data)


def refused(*parts: str, without: tuple[str, ...] = (), **keys: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        config_with(*without, **keys)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("config.json: ")
    assert len(message) < 300
    for part in parts:
        assert part in message


# --- RoPE ----------------------------------------------------------------------------------------

ROPE = ("rope_theta", "rope_local_theta")


def thetas(config: Plamo2Config) -> tuple[float, float]:
    return config.rope_theta, config.rope_local_theta


def test_rope_parameters_of_transformers_5_are_honoured():
    told = {"rope_theta": 1e6, "rope_type": "default"}
    assert thetas(config_with(*ROPE, rope_parameters=told)) == (1e6, 1e6)
    assert thetas(config_with(*ROPE, rope_scaling=told)) == (1e6, 1e6)
    both = config_with("rope_theta", rope_parameters=told, rope_local_theta=2e4)
    assert thetas(both) == (1e6, 2e4)
    by_kind = {"full_attention": told, "sliding_attention": {"rope_theta": 5e3}}
    assert thetas(config_with(*ROPE, rope_parameters=by_kind)) == (1e6, 5e3)
    assert thetas(config_with(*ROPE)) == (1e4, 1e4)
    assert thetas(config_with("rope_local_theta", rope_theta=7e3)) == (7e3, 7e3)
    assert thetas(config_with("rope_theta", rope_local_theta=7e3)) == (1e4, 7e3)


@pytest.mark.parametrize("neutral", [None, {}, {"rope_type": "default"}, {"type": "default"},
    {"rope_type": "default", "factor": 1.0, "partial_rotary_factor": 1}])  # fmt: skip
def test_rope_scaling_that_scales_nothing_is_fine(neutral):
    assert config_with(rope_scaling=neutral) == config_with()
    assert config_with(rope_parameters=neutral) == config_with()


@pytest.mark.parametrize(
    "told",
    [
        {"rope_type": "yarn", "factor": 32.0},
        {"type": "linear", "factor": 2.0},
        {"rope_type": "default", "factor": 2.0},
        {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"rope_theta": 1e4, "mrope_section": [16, 24, 24]},
        {"rope_theta": 1e6},  # and rope_theta says 1e4
        {"rope_theta": "1e4"},
        {"rope_theta": True},
        {"sliding_attention": {"rope_type": "llama3"}},
        {"sliding_attention": 10000.0},
        [1e6],
        1e6,
    ],
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_other_rope_is_refused_by_name(key, told):
    refused(key, **{key: told})


# --- other names and other models ----------------------------------------------------------------


def test_a_window_under_its_other_name_alone_is_the_window():
    config = config_with("attention_window_size", sliding_window=77)
    assert config.attention_window_size == 77
    assert config_with(sliding_window=None).attention_window_size == 64
    refused("sliding_window is 77, but attention_window_size is 64", sliding_window=77)
    refused("attention_window_size", without=("attention_window_size",), sliding_window=True)
    assert config_with("hidden_size_per_head", head_dim=32).hidden_size_per_head == 32
    refused("head_dim is 64, but hidden_size_per_head is 32", head_dim=64)
    refused("rope_local_base_freq", rope_local_base_freq=1e6)


@pytest.mark.parametrize("key", FOREIGN)
def test_keys_of_other_models_are_refused_unless_they_change_nothing(key):
    for neutral in FOREIGN[key].neutral:
        assert config_with(**{key: neutral}) == config_with()
    assert config_with(**{key: None}) == config_with()
    refused(f"{key}=", FOREIGN[key].why, **{key: {"bits": 4}})
    refused(f"{key}=", **{key: 0.25})


def test_one_is_not_true():
    refused("attention_bias=0", attention_bias=0)
    refused("logit_scale=True", logit_scale=True)


def test_layer_types_must_be_those_of_the_layers():
    kinds = {"mamba": "mamba", "sliding_window": "sliding_attention", "full": "full_attention"}
    told = [kinds[kind] for kind in config_with().layer_kinds]
    assert config_with(layer_types=told) == config_with()
    refused("layer 1 is 'mamba', but", layer_types=["mamba"] * 8)
    refused("layer 3 is 'sliding_attention'", layer_types=["mamba", "sliding_attention"] * 4)
    refused("a list of 8 kinds", layer_types=told[1:])
    refused("layer 0 is ['mamba']", layer_types=[["mamba"], *told[1:]])


def test_a_model_that_does_not_continue_texts_is_refused():
    for name in ("PlamoForCausalLM", "Plamo2ForCausalLM"):
        config_with(architectures=[name])
    config_with("architectures")
    for wrong in (["Plamo2ForSequenceClassification"], ["Plamo2Model"], [], "x", {"a": 1}):
        refused("architectures", architectures=wrong)


def test_keys_without_an_effect_are_dropped():
    leftovers = {"linear_type": "fp8", "image_token_id": 5, "eval_mlp_n_bit": None, "k_expert": 2}
    assert config_with(**leftovers) == config_with()


# --- values --------------------------------------------------------------------------------------

NO_SIZES = [0, -1, True, False, 2.0, "2", [], {}, 10**60, float("nan")]


@pytest.mark.parametrize("name", SIZES)
def test_every_size_has_its_bounds(name):
    least, most = SIZES[name]
    for value in (*NO_SIZES, least - 1, most + 1):
        refused(f"{name} must be an integer from {least:,} to {most:,}", without=(
            "sliding_window",), **{name: value})  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_its_bounds(name):
    for value in (0, -1.0, True, "1", [], 10**60, 1e300, float("nan"), float("inf")):
        refused(f"{name} must be a number above 0", **{name: value})


@pytest.mark.parametrize("name", ["tie_word_embeddings", "mamba_enabled"])
def test_flags_are_true_or_false(name):
    for value in (0, 1, "true", []):
        refused(f"{name} must be true or false", **{name: value})


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_ids_are_those_of_the_vocabulary(name):
    for value in (-1, 5120, 10**60, True, 2.0, "2", {}):
        refused(f"{name} must be an id", "0 to 5,119", **{name: value})
    assert getattr(config_with(**{name: None}), name) is None
    assert getattr(config_with(**{name: 5119}), name) == 5119


def test_several_ids_end_a_text_but_only_one_begins_it():
    config = config_with(eos_token_id=[1, 4])
    assert config.eos_token_id == (1, 4)
    assert Plamo2Config.from_dict(config.to_dict()) == config
    for wrong in ([1, 5120], [1, True], [[1]], [1] * 2000):
        refused("eos_token_id must be", eos_token_id=wrong)
    refused("bos_token_id must be an id", bos_token_id=[1])


def test_layers_without_a_window_are_layers():
    for wrong in (3, "3", [8], [-1], [True], [3.0], [[3]], list(range(9))):
        refused("full_attention_idx", full_attention_idx=wrong)


def test_a_small_file_cannot_ask_for_ten_million_layers():
    started = time.perf_counter()
    for name, (_, most) in SIZES.items():
        refused(name, without=("sliding_window",), **{name: most + 10_000_000})
    refused("full_attention_idx", full_attention_idx=[3] * 10_000_000)
    largest = {name: most for name, (_, most) in SIZES.items()}
    assert config_with("sliding_window", **largest).num_parameters > 10**12
    assert time.perf_counter() - started < 60


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
)


@settings(max_examples=60)
@given(st.sampled_from(sorted({*SIZES, *NUMBERS, *FOREIGN, *TINY, "layer_types"})), anything)
def test_whatever_a_key_says_it_is_read_or_refused_by_name(key, value):
    said = key
    try:
        config = config_with(**{key: value})
        assert Plamo2Config.from_dict(config.to_dict()) == config
    except ConfigError as error:
        said = str(error)
    assert key in said or "attention_window_size" in said


def test_a_file_is_named_by_its_path(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY | {"vocab_size": True}))
    with pytest.raises(ConfigError, match=f"^{path}: vocab_size must be"):
        Plamo2Config.from_file(path)
    path.write_text('{"model_type": "plamo2", "vocab_size": 5, "vocab_size": 6}')
    with pytest.raises(ConfigError, match=f"^{path}: 'vocab_size' is there twice"):
        Plamo2Config.from_file(path)
