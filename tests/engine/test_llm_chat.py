"""`LLM.chat`, and an `LLM` that ends.

Invariant tested: a conversation gives what its rendered prompt gives; what is closed is gone, says
so, and leaves nothing behind.
"""

import gc
import shutil
import weakref

import pytest

from plamo_ref import LLM, EngineConfig, SamplingParams
from plamo_ref.chat.conversations import read_conversations
from plamo_ref.chat.templates import TemplateLoadError, TemplateRefusesError
from plamo_ref.engine.config import EngineError
from plamo_ref.intake.hub import find
from plamo_ref.sampling import GuidedParams

TALK = [{"role": "user", "content": "吾輩は"}]
LONGER = [
    *TALK,
    {"role": "assistant", "content": "猫である。"},
    {"role": "user", "content": "名前は"},
]
GREEDY = SamplingParams(temperature=0, max_tokens=6)


def small(**fields: object) -> LLM:
    return LLM("tiny", device="cpu", memory_bytes=8 << 20, **fields)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return small()


def test_a_conversation_gives_what_its_prompt_gives(llm):
    one, other = llm.chat([TALK, LONGER], GREEDY, use_tqdm=False)
    assert one.prompt == "user: 吾輩は\nassistant:"
    assert other.prompt == "user: 吾輩は\nassistant: 猫である。\nuser: 名前は\nassistant:"
    stops = ["\nuser:", "\nsystem:"]
    params = SamplingParams(temperature=0, max_tokens=6, stop=stops)
    texts = llm.generate([one.prompt, other.prompt], params, use_tqdm=False)
    assert [t.outputs for t in texts] == [one.outputs, other.outputs]
    (alone,) = llm.chat(TALK, GREEDY, use_tqdm=False)
    assert alone.outputs == one.outputs


def test_an_answer_ends_where_the_turn_ends(llm):
    """The embedded model knows no chats, so it is forced to write the next turn."""
    params = SamplingParams(guided=GuidedParams(choice=["はい\nuser: それで"]), max_tokens=40)
    (answer,) = llm.chat(TALK, params, use_tqdm=False)
    assert (answer.outputs[0].text, answer.outputs[0].stop_reason) == ("はい", "\nuser:")


def test_the_second_conversation_with_the_same_instructions_begins_behind_them():
    llm = small(enable_prefix_caching=True)
    told = {"role": "system", "content": "It was the best of times, it was the worst of times."}
    talks = [[told, {"role": "user", "content": text}] for text in ("それで?", "Who are you?")]
    found = [llm.chat(talk, GREEDY, use_tqdm=False)[0].num_cached_tokens for talk in talks]
    assert found[0] == 0
    assert found[1] > len(llm.tokenizer.encode(told["content"]))


def test_another_template_is_used_by_name_or_file(llm, tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ mood }}{{ messages[0].content }}")
    path = str(tmp_path / "mine.jinja")
    (answer,) = llm.chat(
        TALK, GREEDY, False, chat_template=path, chat_template_kwargs={"mood": "!"}
    )
    assert answer.prompt == "!吾輩は"
    (answer,) = llm.chat(TALK, GREEDY, use_tqdm=False, chat_template="translate")
    assert (answer.prompt or "").startswith("<|plamo:op|>dataset")
    with pytest.raises(TemplateRefusesError, match="no system message"):
        llm.chat([{"role": "system", "content": "x"}], chat_template="translate")


@pytest.mark.parametrize(
    "given",
    ["hello", [], [[]], [["hello"]], [{"content": "no role"}], [{"role": 1, "content": "x"}], None],
)
def test_what_is_no_conversation_is_refused_by_place(llm, given):
    with pytest.raises(TemplateLoadError, match=r"conversation 0: .* is no message"):
        llm.chat(given)


def test_one_and_many_conversations():
    assert read_conversations(TALK) == [TALK]
    assert read_conversations([TALK, LONGER]) == [TALK, LONGER]


def test_a_base_model_s_chat_is_refused_not_guessed(tmp_path):
    from test_source import folder

    del folder

    shutil.copytree(find("tiny"), tmp_path / "base")
    with LLM(tmp_path / "base", device="cpu", memory_bytes=8 << 20) as base:
        with pytest.raises(TemplateLoadError, match="a base model without a chat template"):
            base.chat(TALK)
        assert base.chat(TALK, GREEDY, use_tqdm=False, chat_template="plain")[0].finished


# --- the end --------------------------------------------------------------------------------------


def test_a_closed_engine_gives_its_memory_back_and_says_so():
    with small() as llm:
        model, cache = weakref.ref(llm.core.runner.model), weakref.ref(llm.core.runner.caches[0])
        llm.generate("吾輩は", GREEDY, use_tqdm=False)
        next(llm.stream("To be", GREEDY))  # dropped half read
    gc.collect()
    assert (model(), cache()) == (None, None)
    for use in (lambda: llm.generate("x"), lambda: llm.stream("x"), lambda: llm.chat(TALK)):
        with pytest.raises(EngineError, match="this LLM is closed"):
            use()
    llm.close()  # once more does no harm


def test_a_stream_that_was_under_way_ends_with_the_engine():
    llm = small()
    stream = llm.stream(["a", "b"], SamplingParams(max_tokens=50, ignore_eos=True))
    next(stream)
    core = llm.core
    llm.close()
    assert not core.has_work
    core.cache.check_integrity()
    stream.close()


def test_settings_come_as_one_object_or_one_by_one():
    config = EngineConfig(device="cpu", memory_bytes=8 << 20, block_size=8)
    with LLM("tiny", config=config) as llm:
        assert llm.config is config
    with pytest.raises(EngineError, match="config is given, and block_size too"):
        LLM("tiny", config=config, block_size=4)
    with pytest.raises(EngineError, match="give an EngineConfig"):
        LLM("tiny", config={"block_size": 4})  # type: ignore[arg-type]
