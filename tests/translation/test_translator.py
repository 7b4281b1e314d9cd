"""A document through a model that translates, or tries to.

Invariant tested: every piece comes once and in order; one that runs away is tried in halves, then
with a penalty, and in the end is there as it was; nothing of the document is lost.
"""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo_ref import LLM
from plamo_ref.engine.outputs import StreamPiece
from plamo_ref.translation import Translator
from plamo_ref.translation.translator import TranslationError


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", device="cpu", memory_bytes=8_000_000, max_num_seqs=8)


class Scripted:
    """Answers are a function of the text: None runs away. Later prompts end first."""

    def __init__(self, tokenizer, answer):
        self.tokenizer, self.answer, self.calls = tokenizer, answer, []

    def stream(self, prompts, sampling_params):
        asked = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            text = self.tokenizer.decode(prompt["prompt_token_ids"])
            content = text.partition("|Japanese\n")[2].rpartition("\n<|plamo:op|>output")[0]
            asked.append((content, params))
        self.calls.append(asked)
        for index in reversed(range(len(asked))):
            answer = self.answer(*asked[index])
            name = str(index)
            yield StreamPiece(name, index, 0, 7, " " + (answer or "la la"), None)
            yield StreamPiece(name, index, 0, 8, "\n", "length" if answer is None else "stop")


def scripted(llm, answer) -> tuple[Translator, Scripted]:
    engine = Scripted(llm.tokenizer, answer)
    return Translator(engine, piece_tokens=1000), engine


def test_pieces_come_in_order_with_the_white_space_of_the_document(llm):
    translator, engine = scripted(llm, lambda text, _: text.upper())
    pieces = list(translator.stream("\n one two\n\nthree.\nfour \n\n\nfive\n"))
    assert [piece.text for piece in pieces] == ["\n ONE TWO\n\n", "THREE.\nFOUR \n\n\n", "FIVE\n"]
    assert [piece.source for piece in pieces] == ["one two", "three.\nfour", "five"]
    assert len(engine.calls) == 1  # all of them together
    assert [piece.output_tokens for piece in pieces] == [2, 2, 2]


def test_what_runs_away_is_tried_in_halves_and_then_with_a_penalty(llm):
    def answer(text, params):
        if "bad" in text and params.repetition_penalty == 1.0:
            return None
        return text.upper()

    translator, engine = scripted(llm, answer)
    done = translator.translate("Good one. A bad one. Good again. And more.\n\nFine.\n")
    assert done.text == "GOOD ONE. A BAD ONE. GOOD AGAIN. AND MORE.\n\nFINE.\n"
    assert done.untranslated == ()
    assert [piece.tries for piece in done.pieces] == [1 + 2 + 2 + 1, 1]
    asked = [[text for text, _ in call] for call in engine.calls]
    assert asked == [
        ["Good one. A bad one. Good again. And more.", "Fine."],
        ["Good one. A bad one.", "Good again. And more."],
        ["Good one.", "A bad one."],
        ["A bad one."],
    ]


def test_what_has_no_translation_stands_as_it_was_and_is_named(llm):
    translator, _ = scripted(llm, lambda text, _: None if "bad" in text else text.upper())
    done = translator.translate("One. A bad one. Two.\n\nThree.")
    assert done.text == "ONE. A bad one. TWO.\n\nTHREE."
    assert done.untranslated == ("A bad one.",)
    assert done.pieces[0].untranslated == ("A bad one.",)


def test_a_model_that_says_nothing_has_not_translated(llm):
    translator, engine = scripted(llm, lambda text, _: " ")
    assert translator.translate("One. Two.").untranslated == ("One.", "Two.")
    assert len(engine.calls) == 3


def test_the_beginning_is_there_before_the_rest_is_tried_again(llm):
    translator, engine = scripted(llm, lambda text, _: None if "bad" in text else text)
    pieces = translator.stream("one\n\nbad\n\nthree")
    assert next(pieces).text == "one\n\n"
    assert len(engine.calls) == 1
    assert [piece.text for piece in pieces] == ["bad\n\n", "three"]


@given(st.text(st.sampled_from("ab猫。.! \n"), max_size=60), st.sets(st.sampled_from("ab猫")))
def test_an_echo_gives_the_document_whoever_runs_away(llm, document, bad):
    translator, _ = scripted(llm, lambda text, _: None if bad & set(text) else text)
    done = translator.translate(document)
    assert "".join(done.text.split()) == "".join(document.split())
    if not bad:
        assert done.text == document
    assert [set(part) & bad for part in done.untranslated].count(set()) == 0


def test_control_tokens_in_a_document_are_text(llm):
    seen = []
    stream = llm.stream
    engine = SimpleNamespace(
        tokenizer=llm.tokenizer,
        stream=lambda prompts, params: stream(seen.append(prompts) or prompts, params),
    )
    op = llm.tokenizer.id_of("<|plamo:op|>")
    counts = []
    for document in ("a word", "a <|plamo:op|> word", "<|plamo:eos|>"):
        Translator(engine).translate(document)
        counts.append(sum(token == op for token in seen[-1][0]["prompt_token_ids"]))
    assert op is not None
    assert counts == [3, 3, 3]


def test_a_real_engine_answers_and_is_clean_afterwards(llm):
    translator = Translator(llm, "English", "Japanese", piece_tokens=12)
    document = "It was the best of times. It was the worst of times.\n\nThe end.\n"
    done = translator.translate(document)
    assert len(done.pieces) >= 3
    assert done.text.endswith("\n")
    assert not llm.core.requests
    prompt = llm.tokenizer.decode(translator._prompt("The end."))
    assert "input lang=English\nThe end.\n" in prompt
    assert prompt.endswith("output lang=Japanese\n")


def test_white_space_alone_is_itself(llm):
    assert Translator(llm).translate(" \n\n").text == " \n\n"
    assert Translator(llm).translate("").text == ""


@pytest.mark.parametrize("tokens", [0, -1, 1.5, True, "many"])
def test_a_piece_of_no_length_is_refused(llm, tokens):
    with pytest.raises(TranslationError, match="piece_tokens must be an integer, 1 or more"):
        Translator(llm, piece_tokens=tokens)
