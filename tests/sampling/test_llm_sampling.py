"""Sampling parameters through the whole engine.

Invariant tested: the same seed gives the same text in any company, each completion is that of its
own seed alone, and a text ends where it was asked to.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from noise import EOS, OP, assert_clean, noise_llm, noise_reference

from plamo_ref import LLM, SamplingParams
from plamo_ref.engine.config import EngineError
from plamo_ref.grammar.pool import GuidePool
from plamo_ref.reference import generate_ids
from plamo_ref.sampling import GuidedParams, child_seed

VOCABULARY = noise_reference().config.vocab_size
PROMPTS = ["あいう the 東京", "12:", "cat", "です、🦙"]


@pytest.fixture(scope="module")
def shared() -> LLM:
    return noise_llm(max_num_seqs=6, max_num_batched_tokens=24)


@pytest.fixture
def llm(shared: LLM):
    yield shared
    assert_clean(shared)


def outputs(llm: LLM, prompts, params):
    results = llm.generate(prompts, params, use_tqdm=False)
    return [output for result in results for output in result.outputs]


# --- seeds ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_text_in_any_company(llm):
    mine = SamplingParams(seed=7, max_tokens=16, temperature=1.3, top_p=0.95)
    (alone,) = outputs(llm, PROMPTS[0], mine)
    for company in range(3):
        others = [
            SamplingParams(seed=company * 10 + i, max_tokens=5 + i, frequency_penalty=i / 2)
            for i in range(3)
        ]
        together = outputs(llm, [*PROMPTS[1:], PROMPTS[0]], [*others, mine])
        assert together[-1] == alone
    different = {outputs(llm, PROMPTS[0], SamplingParams(seed=s))[0].text for s in range(5)}
    assert len(different) == 5


def test_requests_without_a_seed_differ():
    llm = noise_llm()
    texts = [o.text for o in outputs(llm, ["cat"] * 4, SamplingParams(max_tokens=12))]
    assert len(set(texts)) == 4
    again = [o.text for o in outputs(noise_llm(), ["cat"] * 4, SamplingParams(max_tokens=12))]
    assert texts == again  # a new engine with the same seed repeats itself
    other = [o.text for o in outputs(noise_llm(seed=1), ["cat"] * 4, SamplingParams(max_tokens=12))]
    assert not set(other) & set(texts)


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 1.7},
        {"presence_penalty": 2.0, "frequency_penalty": 0.5},
        {"logit_bias": {40: 4.0, 300: -9.0}, "min_tokens": 10},
        {"top_k": 5, "min_p": 0.02, "top_p": 0.8},
        {"temperature": 0, "repetition_penalty": 1.2, "frequency_penalty": -0.3},
    ],
)
def test_every_knob_gives_the_reference_s_ids(llm, params):
    wanted = SamplingParams(**({"seed": 11, "max_tokens": 18} | params))
    for result in llm.generate(PROMPTS, wanted, use_tqdm=False):
        ids = generate_ids(noise_reference(), result.prompt_token_ids, wanted, llm.stop_token_ids)
        assert result.outputs[0].token_ids == tuple(ids)


# --- n --------------------------------------------------------------------------------------------


def test_n_completions_are_n_requests_with_the_children_s_seeds(llm):
    results = llm.generate(PROMPTS[:2], SamplingParams(n=3, seed=5, max_tokens=9), use_tqdm=False)
    for prompt, result in zip(PROMPTS, results, strict=False):
        assert [o.index for o in result.outputs] == [0, 1, 2]
        for number, output in enumerate(result.outputs):
            alone = SamplingParams(seed=child_seed(5, number), max_tokens=9)
            (single,) = outputs(llm, prompt, alone)
            assert (single.token_ids, single.text) == (output.token_ids, output.text)
        assert len({o.token_ids for o in result.outputs}) == 3


def test_the_first_of_n_is_what_one_alone_would_be(llm):
    (one,) = outputs(llm, "cat", SamplingParams(seed=2, max_tokens=9))
    assert outputs(llm, "cat", SamplingParams(seed=2, max_tokens=9, n=4))[0] == one


def test_streamed_pieces_say_whose_they_are(llm):
    params = SamplingParams(n=2, seed=5, max_tokens=7, ignore_eos=True)
    whole = llm.generate(PROMPTS[:2], params, use_tqdm=False)
    texts: dict[tuple[int, int], str] = {}
    for piece in llm.stream(PROMPTS[:2], params):
        key = (piece.index, piece.completion)
        texts[key] = texts.get(key, "") + piece.text
    assert texts == {(i, o.index): o.text for i, r in enumerate(whole) for o in r.outputs}


def test_aborting_a_prompt_ends_all_its_completions_and_no_other(llm):
    params = SamplingParams(n=3, seed=1, max_tokens=12, ignore_eos=True)
    ended: dict[tuple[int, int], str] = {}
    for count, piece in enumerate(llm.stream(["cat", "12:"], params)):
        if count == 6:
            llm.abort(piece.request_id.partition(".")[0])
            gone = piece.index
        if piece.finish_reason is not None:
            ended[piece.index, piece.completion] = piece.finish_reason
    expected = {(i, c): "abort" if i == gone else "length" for i in range(2) for c in range(3)}
    assert ended == expected


# --- where a text ends ----------------------------------------------------------------------------


@dataclass
class AnyCut:
    """A guide for one text that may be cut into tokens in any way."""

    text: bytes
    token_bytes: Callable[[int], bytes]
    complete: bool = False
    error: str | None = None

    def wait(self, seconds: float) -> bool:
        return True

    def close(self) -> None:
        pass

    def mask(self, stop_ids) -> np.ndarray:
        pieces = [self.token_bytes(i) for i in range(VOCABULARY)]
        return np.array([bool(piece) and self.text.startswith(piece) for piece in pieces])

    def accept(self, token: int) -> None:
        self.text = self.text[len(self.token_bytes(token)) :]
        self.complete = not self.text

    @property
    def finished(self) -> bool:
        return self.complete


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("stop", ["top c", "京都で", "🦙", "p cat 東京"])
def test_a_stop_string_ends_the_text_wherever_the_tokens_have_their_borders(
    llm, seed, stop, monkeypatch
):
    text = "the stop cat 東京京都です🦙 end"
    cuts = lambda *_: AnyCut(text.encode(), llm.tokenizer.token_bytes)  # noqa: E731
    monkeypatch.setattr(GuidePool, "start", cuts)

    def written(**params):
        guided = GuidedParams(choice=[text])
        return outputs(llm, "x", SamplingParams(guided=guided, max_tokens=60, seed=seed, **params))[
            0
        ]

    cut = written(stop=["nowhere", stop])
    assert cut.text == text[: text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    kept = written(stop=stop, include_stop_str_in_output=True)
    assert kept.text == text[: text.index(stop) + len(stop)]
    assert kept.token_ids == cut.token_ids
    whole = written(stop="nowhere")
    assert (whole.text, whole.finish_reason, whole.stop_reason) == (text, "stop", None)
    assert whole.token_ids[: len(cut.token_ids)] == cut.token_ids


def test_a_stop_token_ends_the_text_and_is_no_part_of_it(llm):
    a, b = llm.tokenizer.id_of("a"), llm.tokenizer.id_of("b")
    lengths = set()
    for seed in range(8):
        params = SamplingParams(
            logit_bias={a: 1000.0, b: 1000.0}, stop_token_ids=[b], seed=seed, max_tokens=50
        )
        (output,) = outputs(llm, "x", params)
        assert output.token_ids[-1] == b
        assert output.text == "a" * (len(output.token_ids) - 1)
        assert (output.finish_reason, output.stop_reason) == ("stop", b)
        lengths.add(len(output.text))
    assert len(lengths) > 2


def test_eos_ends_a_text_unless_it_is_ignored(llm):
    likely = {"logit_bias": {EOS: 1000.0}, "temperature": 0, "max_tokens": 5}
    (ended,) = outputs(llm, "x", SamplingParams(**likely))
    assert (ended.token_ids, ended.text, ended.stop_reason) == ((EOS,), "", EOS)
    (on,) = outputs(llm, "x", SamplingParams(**likely, ignore_eos=True))
    assert (on.token_ids, on.finish_reason, on.stop_reason) == ((EOS,) * 5, "length", None)
    (own,) = outputs(
        llm,
        "x",
        SamplingParams(
            temperature=0, logit_bias={OP: 1000.0}, ignore_eos=True, stop_token_ids=[OP]
        ),
    )
    assert (own.token_ids, own.finish_reason, own.stop_reason) == ((OP,), "stop", OP)


def test_before_min_tokens_neither_stop_tokens_nor_stop_strings_count(llm):
    likely = {"logit_bias": {EOS: 1000.0}, "temperature": 0, "max_tokens": 9}
    (output,) = outputs(llm, "x", SamplingParams(**likely, min_tokens=4))
    assert len(output.token_ids) == 5
    assert EOS not in output.token_ids[:4]
    assert output.token_ids[4] == EOS

    always = {"logit_bias": {llm.tokenizer.id_of("a"): 1000.0}, "temperature": 0, "stop": "a"}
    for least in (0, 1, 3):
        (output,) = outputs(llm, "x", SamplingParams(**always, min_tokens=least))
        assert output.text == "a" * least
        assert (output.finish_reason, output.stop_reason) == ("stop", "a")


def test_a_stop_string_in_the_last_token_allowed_is_a_stop(llm):
    always = {"logit_bias": {llm.tokenizer.id_of("a"): 1000.0}, "temperature": 0}
    (output,) = outputs(llm, "x", SamplingParams(**always, max_tokens=3, stop="aaa"))
    assert (output.text, output.finish_reason) == ("", "stop")
    (output,) = outputs(llm, "x", SamplingParams(**always, max_tokens=3, stop="aaaa"))
    assert (output.text, output.finish_reason) == ("aaa", "length")


def test_a_bias_for_a_token_that_does_not_exist_is_refused(llm):
    for params in ({"logit_bias": {10**6: 1.0}}, {"stop_token_ids": [10**6]}):
        with pytest.raises(EngineError, match=f"{next(iter(params))} names token 1000000"):
            llm.generate(["a", "b"], [SamplingParams(), SamplingParams(**params)], use_tqdm=False)
