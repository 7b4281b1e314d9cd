"""The reference against cases computed by independent implementations, and against itself.

Invariant tested: a token's result depends on the tokens before it alone, however they are fed.
"""

import itertools
from pathlib import Path

import pytest
import torch
from engines import CONFIGS, pair
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from plamo_ref.proof.lab import lab_config, random_pair
from plamo_ref.reference import Plamo2Reference, generate_ids, generate_text
from plamo_ref.reference.attention import AttentionState
from plamo_ref.reference.functions import rms_norm, rope, visible
from plamo_ref.reference.generation import PromptError
from plamo_ref.reference.mamba import MambaState
from plamo_ref.reference.scan import scan_chunks, scan_steps
from plamo_ref.sampling import SamplingParams
from plamo_ref.text.tokenizer import Plamo2Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.name for path in GOLDEN.glob("c*"))
HYBRID = "mamba, sliding and full"
GREEDY = SamplingParams(temperature=0, max_tokens=32)
F64 = torch.float64


def expected(case: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / case / "expected.safetensors")


def worst(got: Tensor, truth: Tensor) -> float:
    assert got.shape == truth.shape
    return (got - truth).abs().max().item()


# --- golden cases ------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "stepwise"])
@pytest.mark.parametrize("case", CASES)
def test_logits_of_all_positions_are_the_golden_ones(case, chunked):
    truth = expected(case)
    model = Plamo2Reference.from_pretrained(GOLDEN / case, chunked=chunked)
    ids = torch.cat((truth["prompt_ids"], truth["greedy_ids"]))
    with torch.inference_mode():
        assert worst(model(ids), truth["logits"]) <= 2e-4


@pytest.mark.parametrize("case", CASES)
def test_hidden_and_final_states_are_the_golden_ones(case):
    truth = expected(case)
    model = Plamo2Reference.from_pretrained(GOLDEN / case)
    with torch.inference_mode():
        output = model.run(truth["prompt_ids"])
    hidden = torch.stack([*output.layer_inputs, output.final_hidden])
    assert worst(hidden, truth["hidden_states"]) <= 2e-4
    for i, state in enumerate(output.state.layers):
        if isinstance(state, MambaState):
            assert worst(state.conv, truth[f"layers.{i}.conv_state"]) <= 2e-4
            assert worst(state.ssm, truth[f"layers.{i}.ssm_state"]) <= 2e-4
        else:
            assert isinstance(state, AttentionState)
            keys = truth[f"layers.{i}.key_cache_prerope"]
            assert worst(state.keys.transpose(0, 1), keys) <= 2e-4
            assert worst(state.values.transpose(0, 1), truth[f"layers.{i}.value_cache"]) <= 2e-4


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_greedy_ids_are_exactly_the_golden_ones(case, cached):
    truth = expected(case)
    model = Plamo2Reference.from_pretrained(GOLDEN / case)
    prompt, answer = truth["prompt_ids"].tolist(), truth["greedy_ids"].tolist()
    assert list(generate_ids(model, prompt, GREEDY, cached=cached)) == answer


@pytest.mark.parametrize(
    "case", [c for c in CASES if (GOLDEN / c / "alt_semantics.safetensors").exists()]
)
def test_other_readings_of_the_window_are_told_apart(case):
    """Rows that other engines compute differ by far more than the tolerance."""
    truth = expected(case)
    alternatives = load_file(GOLDEN / case / "alt_semantics.safetensors")
    readings = {name: rows for name, rows in alternatives.items() if rows.ndim == 2}
    assert readings
    for name, rows in readings.items():
        assert (rows - truth["logits"][-len(rows) :]).abs().max() > 0.01, name


# --- equal to itself, however it is fed --------------------------------------------------------


@settings(max_examples=40)
@given(
    name=st.sampled_from(list(CONFIGS)),
    cuts=st.lists(st.integers(1, 23), max_size=5, unique=True).map(sorted),
)
def test_any_split_gives_the_same_logits_and_states(name, cuts):
    model = pair(name).reference
    ids = torch.arange(24) * 11 % model.config.vocab_size
    state, logits = None, []
    with torch.inference_mode():
        whole = model.run(ids)
        for start, end in itertools.pairwise([0, *cuts, 24]):
            output = model.run(ids[start:end], state)
            state = output.state
            logits.append(output.logits)
    assert worst(torch.cat(logits), whole.logits) < 1e-11
    assert state.num_tokens == whole.state.num_tokens == 24
    for one, other in zip(state.layers, whole.state.layers, strict=True):
        for field, value in vars(one).items():
            assert worst(value, getattr(other, field)) < 1e-11


def test_running_does_not_change_the_state_it_was_given():
    model = pair(HYBRID).reference
    with torch.inference_mode():
        state = model.run(torch.arange(9)).state
        before = [{k: v.clone() for k, v in vars(layer).items()} for layer in state.layers]
        one = model.run(torch.arange(9, 14), state).logits
        other = model.run(torch.arange(9, 14), state).logits
    assert torch.equal(one, other)
    assert state.num_tokens == 9
    for layer, copies in zip(state.layers, before, strict=True):
        assert all(torch.equal(getattr(layer, k), v) for k, v in copies.items())


@pytest.mark.parametrize("name", CONFIGS)
def test_leading_batch_dimensions_are_independent(name):
    model = pair(name).reference
    ids = torch.arange(2 * 3 * 11).view(2, 3, 11) * 7 % model.config.vocab_size
    with torch.inference_mode():
        together = model.run(ids)
        for i, j in itertools.product(range(2), range(3)):
            alone = model.run(ids[i, j])
            assert worst(together.logits[i, j], alone.logits) < 1e-11
        more = model.run(ids[..., :2], together.state)
        assert more.logits.shape == (2, 3, 2, model.config.vocab_size)


def test_states_have_the_same_size_after_any_number_of_tokens():
    model = pair("mamba and sliding").reference
    window = model.config.attention_window_size
    with torch.inference_mode():
        for length in (window, window + 1, 3 * window):
            for state in model.run(torch.zeros(length, dtype=torch.long)).state.layers:
                if isinstance(state, AttentionState):
                    assert state.keys.shape[0] == window


@pytest.mark.parametrize(
    ("dtype", "kept"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (F64, F64)]
)
def test_a_recurrence_is_in_at_least_float32_whatever_the_weights_are_in(dtype, kept):
    model = random_pair(lab_config(), dtype).reference
    with torch.inference_mode():
        output = model.run(torch.arange(5))
    assert output.logits.dtype == dtype
    states = [state for state in output.state.layers if isinstance(state, MambaState)]
    assert {(state.conv.dtype, state.ssm.dtype) for state in states} == {(dtype, kept)}


def test_the_past_does_not_see_the_future():
    model, ids = pair(HYBRID).reference, torch.arange(15)
    other = ids.clone()
    other[9:] += 3
    with torch.inference_mode():
        assert worst(model(ids)[:9], model(other)[:9]) < 1e-11
        assert worst(model(ids)[9:], model(other)[9:]) > 1e-3


def test_logits_are_cut_to_the_vocabulary():
    name = "attention in the last layer only, untied, a vocabulary that is padded"
    model = pair(name).reference
    assert model.lm_head.weight.shape[0] == 64
    assert model(torch.tensor([3])).shape == (1, 61)


# --- the scan and the small functions ----------------------------------------------------------


@settings(max_examples=40)
@given(length=st.integers(0, 40), chunk=st.integers(1, 50), batch=st.sampled_from([(), (2,)]))
def test_the_chunked_scan_is_the_stepwise_scan(length, chunk, batch):
    generator = torch.Generator().manual_seed(length)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*batch, *shape, generator=generator, dtype=F64)

    x, dt, A = noise(length, 3, 2), noise(length, 3).exp(), -noise(3).exp()
    B, C, state = noise(length, 5), noise(length, 5), noise(3, 2, 5)
    A = A if not batch else A[0]
    y, last = scan_steps(x, dt, A, B, C, state)
    other, also = scan_chunks(x, dt, A, B, C, state, chunk)
    torch.testing.assert_close(other, y, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(also, last, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scan", [scan_steps, scan_chunks])
def test_the_scan_is_differentiable(scan):
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=F64).requires_grad_()

    arguments = (noise(4, 2, 2), noise(4, 2), noise(2), noise(4, 3), noise(4, 3), noise(2, 2, 3))
    assert torch.autograd.gradcheck(scan, arguments)


def test_rms_norm_and_rope_are_differentiable():
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    gain, places = torch.ones(4, dtype=F64).requires_grad_(), torch.tensor([0, 5, 99])
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, g: rms_norm(a, g, 1e-6), (x, gain))
    assert torch.autograd.gradcheck(lambda a: rope(a, places, 1e4), (x,))


def test_the_whole_model_is_differentiable():
    """In a direction of all parameters at once: the slope is the difference quotient."""
    config = lab_config(hidden_size=8, vocab_size=16, intermediate_size=8, mamba_num_heads=1)
    model = random_pair(config).reference.requires_grad_(True)
    ids = torch.arange(10) % 16

    def loss() -> Tensor:
        return torch.nn.functional.cross_entropy(model(ids[:-1]), ids[1:])

    loss().backward()
    parameters = list(model.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)
    generator = torch.Generator().manual_seed(2)
    ways = [torch.randn(p.shape, generator=generator, dtype=F64) for p in parameters]
    slope = sum((p.grad * way).sum() for p, way in zip(parameters, ways, strict=True))
    step, sides = 1e-6, []
    with torch.no_grad():
        for sign in (1, -2):
            for p, way in zip(parameters, ways, strict=True):
                p += sign * step * way
            sides.append(loss())
    torch.testing.assert_close((sides[0] - sides[1]) / (2 * step), slope, rtol=1e-6, atol=1e-8)


def test_window_edge_sees_w_plus_one_keys():
    mask = visible(torch.tensor([9]), torch.arange(12), 6)[0]
    assert mask.nonzero().flatten().tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert visible(torch.tensor([9]), torch.arange(12), None)[0].sum() == 10


def test_a_token_is_forgotten_by_attention_exactly_after_w_more():
    """One sliding layer and no Mamba: token 0 changes the logits of tokens 0 to W, no others."""
    config = lab_config(mamba_enabled=False, num_hidden_layers=1, full_attention_idx=())
    model = random_pair(config).reference
    one, other = torch.arange(12), torch.arange(12)
    other[0] = 40
    with torch.inference_mode():
        changed = (model(one) - model(other)).abs().amax(-1) > 1e-9
    assert changed.tolist() == [True] * 7 + [False] * 5


# --- generation --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_generation_is_uncached_generation(name):
    model = pair(name).reference
    for params in (GREEDY, SamplingParams(seed=3, temperature=2, max_tokens=20)):
        cached, uncached = (
            list(generate_ids(model, [1, 2, 3], params, cached=flag)) for flag in (True, False)
        )
        assert cached == uncached


def test_generation_stops_after_a_stop_token():
    model = pair(HYBRID).reference
    ids = list(generate_ids(model, [5, 6], GREEDY))
    stop = ids[4]
    assert list(generate_ids(model, [5, 6], GREEDY, [stop])) == ids[: ids.index(stop) + 1]


def test_a_generator_left_half_way_does_not_leave_inference_mode_on():
    generator = generate_ids(pair(HYBRID).reference, [5, 6], GREEDY)
    next(generator)
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("prompt", "reason"), [([], "no tokens"), ([1, 64], "prompt token 1 is 64")]
)
def test_impossible_prompts_are_refused(prompt, reason):
    with pytest.raises(PromptError, match=reason):
        next(generate_ids(pair(HYBRID).reference, prompt, GREEDY))


def test_text_pieces_join_to_the_text_of_the_ids():
    folder = GOLDEN / CASES[0]
    model, tokenizer = Plamo2Reference.from_pretrained(folder), Plamo2Tokenizer.from_folder(folder)
    params = SamplingParams(temperature=0, max_tokens=12, skip_special_tokens=False)
    pieces = list(generate_text(model, tokenizer, [5, 6, 7], params))
    assert "".join(p.text for p in pieces) == tokenizer.decode([p.token_id for p in pieces])
    assert [p.finish_reason for p in pieces] == [None] * 11 + ["length"]
    stop = pieces[3].token_id
    stopped = list(generate_text(model, tokenizer, [5, 6, 7], params, [stop]))
    assert stopped[-1].finish_reason == "stop"
    assert stopped[-1].token_id == stop
