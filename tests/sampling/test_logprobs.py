"""Log probabilities: what the model said, before penalties, temperature and masks.

Invariant tested: they are those of the reference's logits within 1e-10, whatever the scheduler,
the chunks and the preemptions, and asking for them changes no token.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noise import ENGINES, assert_clean, noise_llm, noise_reference, preemptions

from plamo_ref import SamplingParams
from plamo_ref.sampling import token_logprobs

PROMPTS = ["あいう the 東京 12", "a", "です" * 9, "cat category 🦙"]


@given(
    st.lists(st.lists(st.floats(-30, 30), min_size=6, max_size=6), min_size=1, max_size=5),
    st.integers(0, 9),
    st.integers(0, 5),
)
def test_the_log_of_the_softmax_and_the_place_in_the_order(rows, count, token):
    scores = token_logprobs(torch.tensor(rows, dtype=torch.float64), [token] * len(rows), count)
    for row, score in zip(rows, scores, strict=True):
        total = max(row) + math.log(math.fsum(math.exp(x - max(row)) for x in row))
        expected = [x - total for x in row]
        assert score.token_id == token
        assert score.logprob == pytest.approx(expected[token], abs=1e-10)
        assert len({i for i, _ in score.top}) == len(score.top) == min(count, 6)
        values = [value for _, value in score.top]
        assert values == pytest.approx(sorted(expected, reverse=True)[:count], abs=1e-10)
        assert all(value == pytest.approx(expected[i], abs=1e-10) for i, value in score.top)


def test_equally_likely_tokens_share_the_best_rank():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, 2.0, 0.0]])
    ranks = [token_logprobs(logits, [token], 0)[0].rank for token in range(6)]
    assert ranks == [5, 1, 1, 3, 3, 6]


def test_sixteen_bits_are_widened_first():
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    (first, second) = token_logprobs(logits, [3, 4], 1)
    exact = torch.log_softmax(logits.double(), -1)
    assert first.logprob == pytest.approx(exact[0, 3].item(), abs=1e-6)
    assert second.logprob == pytest.approx(exact[1, 4].item(), abs=1e-6)


# --- through the engine ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference_scores():
    """[T, V] log probabilities after each token of an output, from one run of the reference."""

    def scores(ids: tuple[int, ...]) -> torch.Tensor:
        with torch.inference_mode():
            return torch.log_softmax(noise_reference()(torch.tensor(ids)), dim=-1)

    return scores


def assert_scores(found, tokens, scores, count):
    assert len(found) == len(tokens)
    for by_id, token, expected in zip(found, tokens, scores, strict=True):
        assert by_id[token].logprob == pytest.approx(expected[token].item(), abs=1e-10)
        assert by_id[token].rank == 1 + int((expected > expected[token]).sum())
        best = expected.topk(count).indices.tolist()
        assert list(by_id) == list(dict.fromkeys([token, *best]))  # it is the first
        for token_id in best:
            assert by_id[token_id].logprob == pytest.approx(expected[token_id].item(), abs=1e-10)
            assert by_id[token_id].rank == 1 + best.index(token_id)


@pytest.mark.parametrize("name", ENGINES)
def test_they_are_the_reference_s_in_every_engine(name, reference_scores):
    llm = noise_llm(**ENGINES[name])
    params = [
        SamplingParams(
            seed=i,
            max_tokens=20,
            ignore_eos=True,
            temperature=1.5,
            repetition_penalty=1.3,
            logit_bias={5: 3.0},
            logprobs=count,
            prompt_logprobs=count,
        )
        for i, count in enumerate((0, 2, 3, 1))
    ]
    results = llm.generate(PROMPTS, params, use_tqdm=False)
    for one, result in zip(params, results, strict=True):
        prompt, output = result.prompt_token_ids, result.outputs[0]
        scores = reference_scores(prompt + output.token_ids)
        assert_scores(output.logprobs, output.token_ids, scores[len(prompt) - 1 : -1], one.logprobs)
        assert result.prompt_logprobs[0] is None
        before = scores[: len(prompt) - 1]
        assert_scores(result.prompt_logprobs[1:], prompt[1:], before, one.prompt_logprobs)
    if "hardly any memory" in name:
        assert preemptions(llm) >= 1
    assert_clean(llm)


def test_asking_changes_no_token():
    llm = noise_llm()
    plain = SamplingParams(seed=3, max_tokens=15, temperature=1.2)
    asking = SamplingParams(seed=3, max_tokens=15, temperature=1.2, logprobs=4, prompt_logprobs=4)
    without = llm.generate(PROMPTS, plain, use_tqdm=False)
    with_them = llm.generate(PROMPTS, asking, use_tqdm=False)
    mixed = llm.generate(PROMPTS, [plain, asking] * 2, use_tqdm=False)
    ids = [[r.outputs[0].token_ids for r in results] for results in (without, with_them, mixed)]
    assert ids[0] == ids[1] == ids[2]
    assert without[0].prompt_logprobs is None
    assert without[0].outputs[0].logprobs is None
    assert mixed[0].outputs[0].logprobs is None
    assert mixed[1].outputs[0].logprobs is not None


def test_a_prompt_of_one_token_has_one_unknown():
    llm = noise_llm()
    params = SamplingParams(max_tokens=2, prompt_logprobs=2, logprobs=1)
    (result,) = llm.generate([[9]], params, use_tqdm=False)
    assert result.prompt_logprobs == (None,)
    assert len(result.outputs[0].logprobs) == len(result.outputs[0].token_ids)


def test_alternatives_come_with_their_text():
    llm = noise_llm()
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3)
    (result,) = llm.generate("the 東京", params, use_tqdm=False)
    for token, by_id in zip(result.outputs[0].token_ids, result.outputs[0].logprobs, strict=True):
        assert by_id[token].rank == 1  # greedy takes the likeliest
        assert {i: entry.decoded_token for i, entry in by_id.items()} == {
            i: llm.tokenizer.decode([i]) for i in by_id
        }
