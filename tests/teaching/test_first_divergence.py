"""The layer microscope names the layer, the token and the quantity of bugs planted on purpose.

Invariant tested: everything before what it names agrees; equal runs give None.
"""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from plamo_ref.config import Plamo2Config
from plamo_ref.reference import Plamo2Reference, attention, mamba
from plamo_ref.teaching.divergence import Divergence, DivergenceError, first_divergence
from plamo_ref.teaching.recording import FINAL, Quantity, Run, record

GOLDEN = Path(__file__).parents[1] / "golden"
WINDOW, TOKENS = 5, 13

CONFIG = Plamo2Config(
    hidden_size=32,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_size_per_head=8,
    attention_window_size=WINDOW,
    full_attention_idx=(3,),
    rope_theta=1e6,
    rope_local_theta=1e4,
    mamba_d_state=8,
    mamba_num_heads=4,
    intermediate_size=48,
    vocab_size=64,
)
IDS = torch.arange(TOKENS) * 7 % 64


def random_model(dtype: torch.dtype = torch.float64) -> Plamo2Reference:
    generator = torch.Generator().manual_seed(0)
    model = Plamo2Reference(CONFIG)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.3 if parameter.ndim > 1 else parameter + noise * 0.1)
            assert noise.abs().sum() > 0, name
    return model.to(dtype)


@pytest.fixture(scope="module")
def model() -> Plamo2Reference:
    return random_model()


@pytest.fixture(scope="module")
def truth(model: Plamo2Reference) -> Run:
    return record(model, IDS)


@pytest.fixture
def broken(model: Plamo2Reference) -> Plamo2Reference:
    """A copy to plant a bug in."""
    return copy.deepcopy(model)


def layer(model: Plamo2Reference, index: int) -> torch.nn.Module:
    return model.model.layers.layers[index]


def found(run: object, truth: object) -> Divergence:
    divergence = first_divergence(run, truth)
    assert divergence is not None
    return divergence


def swap_z_and_x(model: Plamo2Reference, index: int) -> None:
    weight = layer(model, index).mixer.in_proj.weight
    with torch.no_grad():
        rows = weight.unflatten(0, (CONFIG.mamba_num_heads, 2, CONFIG.hidden_size_per_head))
        weight.copy_(rows.flip(1).flatten(0, 2))


# --- equal runs ----------------------------------------------------------------------------------


def test_equal_runs_do_not_diverge(model: Plamo2Reference, truth: Run) -> None:
    assert first_divergence(record(model, IDS), truth) is None
    assert first_divergence(model.run(IDS), truth) is None


def test_two_dtypes_do_not_diverge_by_default() -> None:
    runs = {d: record(random_model(d), IDS) for d in (torch.float64, torch.float32)}
    assert first_divergence(runs[torch.float32], runs[torch.float64]) is None
    assert first_divergence(runs[torch.float32], runs[torch.float64], rtol=1e-12) is not None


def test_a_bfloat16_run_is_judged_by_bfloat16_noise_even_in_its_float32_states() -> None:
    coarse = record(random_model(torch.bfloat16), IDS)
    assert first_divergence(coarse, record(random_model(torch.float32), IDS)) is None


def test_chunked_and_stepwise_scans_do_not_diverge(model: Plamo2Reference, truth: Run) -> None:
    steps = Plamo2Reference(CONFIG, chunked=False).to(torch.float64)
    steps.load_state_dict(model.state_dict())
    run = record(steps, IDS)
    assert Quantity(0, "mixer.scan") in run.values
    assert first_divergence(run, truth) is None


@pytest.mark.parametrize("case", ["c1_1b_like", "c3_full_mix", "c5_step4_shard", "c9_vocab_pad"])
def test_the_reference_and_another_implementations_arrays_do_not_diverge(case: str) -> None:
    arrays = load_file(GOLDEN / case / "expected.safetensors")
    reference = Plamo2Reference.from_pretrained(GOLDEN / case)
    assert first_divergence(record(reference, arrays["prompt_ids"]), arrays) is None
    whole = torch.cat((arrays["prompt_ids"], arrays["greedy_ids"]))
    assert first_divergence(reference.run(whole), arrays) is None


# --- planted bugs --------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 2, 4])
def test_swapped_z_and_x_are_found_in_their_layer(
    broken: Plamo2Reference, truth: Run, index: int
) -> None:
    swap_z_and_x(broken, index)
    divergence = found(record(broken, IDS), truth)
    assert (divergence.layer, divergence.token) == (index, 0)
    assert divergence.quantity == "mixer.in_proj"


def test_swapped_z_and_x_are_seen_from_outside_in_the_convolutions_state(
    broken: Plamo2Reference, truth: Run
) -> None:
    mixer = layer(broken, 2).mixer
    original, heads = mixer.in_proj.forward, (mixer.heads, 2, mixer.head_size)
    mixer.in_proj.forward = lambda x: original(x).unflatten(-1, heads).flip(-2).flatten(-3)
    divergence = found(broken.run(IDS), truth)
    assert (divergence.layer, divergence.quantity) == (2, "conv_state")


@pytest.mark.parametrize("off", [-1, 1])
def test_a_window_off_by_one_is_found_at_the_first_token_that_sees_too_much_or_too_little(
    broken: Plamo2Reference, truth: Run, off: int
) -> None:
    layer(broken, 1).mixer.window += off
    divergence = found(record(broken, IDS), truth)
    assert (divergence.layer, divergence.quantity) == (1, "mixer.attention")
    assert divergence.token == (WINDOW if off < 0 else WINDOW + 1)


def test_a_window_off_by_one_is_seen_from_outside_at_the_next_layer(
    broken: Plamo2Reference, model: Plamo2Reference
) -> None:
    layer(broken, 1).mixer.window += 1
    divergence = found(broken.run(IDS), model.run(IDS))
    assert (divergence.layer, divergence.token, divergence.quantity) == (2, WINDOW + 1, "input")


@pytest.mark.parametrize(
    "norm", ["pre_mixer_norm", "post_mixer_norm", "pre_mlp_norm", "post_mlp_norm"]
)
def test_a_changed_eps_is_found_in_its_norm(broken: Plamo2Reference, truth: Run, norm: str) -> None:
    getattr(layer(broken, 3), norm).eps = 1e-3
    divergence = found(record(broken, IDS), truth)
    assert (divergence.layer, divergence.token, divergence.quantity) == (3, 0, norm)


def test_swapped_thetas_are_found_at_the_second_token_after_rope(
    broken: Plamo2Reference, truth: Run
) -> None:
    layer(broken, 3).mixer.theta = CONFIG.rope_local_theta
    divergence = found(record(broken, IDS), truth)
    # Position 0 is not rotated, whatever the base.
    assert (divergence.layer, divergence.token) == (3, 1)
    assert divergence.quantity == "mixer.q after rope"
    assert divergence.place == "layer 3, token 1: mixer.q after rope"


def test_a_missing_post_norm_offset_is_found(broken: Plamo2Reference, truth: Run) -> None:
    layer(broken, 4).post_mixer_norm.offset = 0.0
    divergence = found(record(broken, IDS), truth)
    assert (divergence.layer, divergence.quantity) == (4, "post_mixer_norm")


@pytest.mark.parametrize(
    ("name", "quantity"),
    [
        ("mixer.A_log", "mixer.A"),
        ("mixer.dt_bias", "mixer.delta"),
        ("mixer.D", "mixer.gated"),
        ("mixer.B_norm_weight", "mixer.B after norm"),
        ("mixer.C_norm_weight", "mixer.C after norm"),
        ("mixer.dt_norm_weight", "mixer.dt after norm"),
        ("mixer.conv1d.weight", "mixer.u after conv"),
        ("mixer.out_proj.weight", "mixer.out_proj"),
        ("mlp.gate_up_proj.weight", "mlp.gate_up_proj"),
        ("mlp.down_proj.weight", "mlp.down_proj"),
    ],
)
def test_a_wrong_weight_of_a_mamba_layer_is_found_in_the_quantity_that_reads_it(
    broken: Plamo2Reference, truth: Run, name: str, quantity: str
) -> None:
    with torch.no_grad():
        layer(broken, 2).get_parameter(name).mul_(1.01)
    divergence = found(record(broken, IDS), truth)
    assert (divergence.layer, divergence.token or 0) == (2, 0)
    assert divergence.quantity == quantity


@pytest.mark.parametrize(
    ("name", "quantity"),
    [
        ("mixer.qkv_proj.weight", "mixer.qkv_proj"),
        ("mixer.q_weight", "mixer.q after norm"),
        ("mixer.k_weight", "mixer.k after norm"),
        ("mixer.o_proj.weight", "mixer.o_proj"),
    ],
)
def test_a_wrong_weight_of_an_attention_layer_is_found_in_the_quantity_that_reads_it(
    broken: Plamo2Reference, truth: Run, name: str, quantity: str
) -> None:
    with torch.no_grad():
        layer(broken, 5).get_parameter(name).mul_(1.01)
    divergence = found(record(broken, IDS), truth)
    assert (divergence.layer, divergence.token, divergence.quantity) == (5, 0, quantity)


def test_another_implementation_with_another_window_is_found_at_its_first_different_token() -> None:
    case = GOLDEN / "c3_full_mix"
    arrays = load_file(case / "expected.safetensors")
    other = load_file(case / "alt_semantics.safetensors")
    start = int(other["first_position"])
    window = Plamo2Config.from_file(case / "config.json").attention_window_size
    for name, first in (
        ("logits_full_attention", window + 1),
        ("logits_window_exactly_W_all_layers", window),
    ):
        wrong = arrays["logits"].clone()
        wrong[start:] = other[name][: len(wrong) - start]
        divergence = found({"logits": wrong}, {"logits": arrays["logits"]})
        assert (divergence.layer, divergence.token, divergence.quantity) == (None, first, "logits")


@settings(max_examples=20, deadline=None)
@given(where=st.integers(0, 5), token=st.integers(0, TOKENS - 1), later=st.integers(0, 5))
def test_the_earliest_layer_and_then_the_earliest_token_is_named(
    where: int, token: int, later: int
) -> None:
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((7, TOKENS, 4))
    wrong = hidden.copy()
    wrong[where, token:] += 1.0
    wrong[min(6, where + later) if later else 6, 0] += 1.0  # a later layer, at an earlier token
    if later == 0:
        wrong[6] = hidden[6]
    divergence = found({"hidden_states": wrong}, {"hidden_states": hidden})
    assert (divergence.layer, divergence.token) == (where, token)


# --- odds and ends -------------------------------------------------------------------------------


def test_nan_is_a_divergence_even_from_nan() -> None:
    run = {"logits": np.ones((3, 4), dtype=np.float32)}
    bad = {"logits": run["logits"].copy()}
    bad["logits"][2, 1] = np.nan
    for other in (run, bad):
        divergence = found(bad, other)
        assert (divergence.token, divergence.difference) == (2, float("inf"))


def test_states_after_different_numbers_of_tokens_are_not_compared(
    model: Plamo2Reference, truth: Run
) -> None:
    assert first_divergence(record(model, IDS[:8]), truth) is None


def test_the_newest_keys_report_the_position_of_their_token(
    model: Plamo2Reference, truth: Run
) -> None:
    with torch.no_grad():
        output = model.run(IDS)
        output.state.layers[1].values[WINDOW - 1] += 1.0  # in this output only
    divergence = found(output, truth)
    assert (divergence.layer, divergence.quantity) == (1, "value_cache")
    assert divergence.token == TOKENS - 1


def test_recording_leaves_the_reference_as_it_was(model: Plamo2Reference) -> None:
    names = [(attention, "rope"), (attention, "rms_norm"), (mamba, "scan_chunks")]
    before = [getattr(module, name) for module, name in names]
    record(model, IDS)
    with pytest.raises(IndexError):
        record(model, torch.tensor([CONFIG.vocab_size]))  # fails before the first layer
    original = layer(model, 1).mixer.o_proj.forward
    layer(model, 1).mixer.o_proj.forward = lambda x: x[..., :0] @ torch.ones(1)
    with pytest.raises(RuntimeError):
        record(model, IDS)  # fails inside a mixer
    layer(model, 1).mixer.o_proj.forward = original
    assert [getattr(module, name) for module, name in names] == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_every_quantity_is_recorded_in_the_order_of_the_forward_pass(truth: Run) -> None:
    orders = [quantity.order for quantity in truth.values]
    assert orders == sorted(orders)
    names = {(q.layer, q.name) for q in truth.values}
    assert {(1, "mixer.q after rope"), (0, "mixer.scan"), (None, FINAL[1])} <= names
    mamba_names = [q.name for q in truth.values if q.layer == 0]
    assert mamba_names.index("mixer.scan") < mamba_names.index("mixer.out_proj")


def test_a_divergence_says_the_same_in_text_and_html_and_draws_a_thermometer(
    broken: Plamo2Reference, truth: Run
) -> None:
    layer(broken, 3).mixer.theta = 10.0
    divergence = found(record(broken, IDS), truth)
    assert re.fullmatch(
        r"first divergence: layer 3, token 1: mixer\.q after rope "
        r"\(off by [\d.]+ at scale [\d.]+\)",
        str(divergence),
    )
    assert str(divergence) in divergence._repr_html_()
    assert "→ layer 3 mixer.q after rope" in divergence._repr_html_()
    assert all(error < 1e-12 for _, error in divergence.table[: divergence.index])
    axes = divergence.figure().axes[0]
    assert any("first" in text.get_text() for text in axes.texts)
    assert "\n" not in divergence.alt


def test_what_cannot_be_compared_is_refused(truth: Run) -> None:
    with pytest.raises(DivergenceError, match="no quantity in common"):
        first_divergence(truth, {"prompt_ids": IDS})
    with pytest.raises(DivergenceError, match=r"logits: shape \[13, 64\] against \[13, 5\]"):
        first_divergence(truth, {"logits": np.zeros((13, 5))})
    with pytest.raises(ValueError, match="no run: int"):
        first_divergence(truth, 3)
    with pytest.raises(ValueError, match=r"ids must be \[T\]"):
        record(random_model(), IDS[None])
    with pytest.raises(ValueError, match="without a batch"):
        first_divergence(truth, random_model().run(IDS[None]))
