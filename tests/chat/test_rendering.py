"""What a client says of a conversation is in its prompt, or refused by name.

Invariant tested: a template that would drop a role, a name or a switch without a word is noticed.
"""

from pathlib import Path

import pytest

from plamo_ref import Plamo2Tokenizer
from plamo_ref.chat.templates import ChatTemplate, load_template
from plamo_ref.intake.hub import find
from plamo_ref.server.errors import ApiError
from plamo_ref.server.openai.schemas import Conversation
from plamo_ref.server.prompt.rendering import render

# A template as many are: roles one by one, the rest is lost.
CHAIN = """\
{% for m in messages %}
{% if m.role == 'system' %}
[S {{ m.content | trim }}]
{% elif m.role == 'user' %}
[U {{ m.content | trim }}]
{% elif m.role == 'assistant' %}
[A {{ m.content | trim }}]
{% endif %}
{% endfor %}
{% for d in documents or [] %}<{{ d.text }}>{% endfor %}
{% if reasoning_effort %}({{ reasoning_effort }}){% endif %}
{% if mood %}:{{ mood }}{% endif %}
{% if add_generation_prompt %}[A{% endif %}"""
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.fixture(scope="module")
def tokenizer() -> Plamo2Tokenizer:
    return Plamo2Tokenizer.from_folder(find("tiny"))


@pytest.fixture
def chain(tmp_path: Path, tokenizer: Plamo2Tokenizer) -> ChatTemplate:
    return template_of(CHAIN, tmp_path, tokenizer)


def template_of(source: str, folder: Path, tokenizer: Plamo2Tokenizer) -> ChatTemplate:
    path = folder / "template.jinja"
    path.write_text(source)
    template = load_template(folder, str(path), tokenizer)
    assert template is not None
    return template


def prompt(template: ChatTemplate, messages: list[dict], **fields: object) -> str:
    asked = Conversation(messages=messages, **fields)
    return render(template, messages, asked)


def refused(template: ChatTemplate, messages: list[dict], **fields: object) -> ApiError:
    with pytest.raises(ApiError) as refusal:
        prompt(template, messages, **fields)
    assert refusal.value.status == 400
    return refusal.value


def test_a_role_that_the_template_drops_is_named(chain):
    assert prompt(chain, [{"role": "system", "content": "s"}, *TALK]) == "[S s]\n[U a]\n[A b]\n[A"
    for role in ("developer", "tool", "critic"):
        for messages in (
            [{"role": role, "content": "a"}, *TALK],
            [*TALK, {"role": role, "content": "a"}],
        ):
            error = refused(chain, messages)
            assert (error.param, error.code) == ("messages", "template_refuses")
            assert repr(role) in str(error)
        error = refused(chain, [{"role": role, "content": "x"}, *TALK], continue_final_message=True)
        assert repr(role) in str(error)
    assert prompt(chain, [{"role": "tool", "content": ""}, *TALK])  # nothing is lost


def test_any_role_that_the_template_writes_is_taken(tokenizer):
    plain = load_template(find("tiny"), "plain", tokenizer)
    assert plain is not None
    messages = [{"role": "developer", "content": "kurz"}, {"role": "critic", "content": "x"}]
    assert prompt(plain, messages) == "developer: kurz\ncritic: x\nassistant:"


def test_a_template_that_needs_a_role_knows_it(tmp_path, tokenizer):
    source = "{% if messages[0].role != 'tool' %}{{ raise_exception('no') }}{% endif %}x"
    template = template_of(source, tmp_path, tokenizer)
    assert prompt(template, [{"role": "tool", "content": "a"}, *TALK]) == "x"


def test_what_a_template_is_told_it_must_know(chain, tokenizer):
    assert prompt(chain, TALK, chat_template_kwargs={"mood": "kind"}).endswith(":kind[A")
    assert prompt(chain, TALK, documents=[{"text": "d"}]).endswith("<d>[A")
    assert prompt(chain, TALK, reasoning_effort="high").endswith("(high)[A")
    plain = load_template(find("tiny"), "plain", tokenizer)
    assert plain is not None
    for fields in (
        {"chat_template_kwargs": {"mood": "kind"}},
        {"documents": [{"text": "d"}]},
        {"reasoning_effort": "high"},
    ):
        (name,) = fields
        error = refused(plain, TALK, **fields)
        assert (error.param, error.code) == (name, "template_refuses")
        assert prompt(plain, TALK, **{name: None}) == prompt(plain, TALK)
    assert "'enable_thinking'" in str(
        refused(chain, TALK, chat_template_kwargs={"enable_thinking": True})
    )
    assert prompt(plain, TALK, documents=[], reasoning_effort="none") == prompt(plain, TALK)


@pytest.mark.parametrize("off", [False, None])
def test_a_switch_that_a_template_does_not_have_is_off(chain, off):
    assert prompt(chain, TALK, chat_template_kwargs={"enable_thinking": off}) == prompt(chain, TALK)
    for on in (True, 0, "", "false"):  # no switch, or one that is on
        refused(chain, TALK, chat_template_kwargs={"enable_thinking": on})


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "bos_token", "tools"])
def test_what_the_server_tells_a_template_is_not_the_clients_to_change(chain, name):
    error = refused(chain, TALK, chat_template_kwargs={name: "x"})
    assert error.param == "chat_template_kwargs"
    assert repr(name) in str(error)


def test_a_turn_can_be_left_out_or_continued(chain):
    assert prompt(chain, TALK, add_generation_prompt=False) == "[U a]\n[A b]\n"
    assert prompt(chain, TALK, continue_final_message=True) == "[U a]\n[A b"
    assert prompt(chain, [*TALK, TALK[0]], continue_final_message=True).endswith("[A b]\n[U a")
    # The mark holds the space that the template would trim: it is the client's.
    spaced = [TALK[0], {"role": "assistant", "content": "b "}]
    assert prompt(chain, spaced, continue_final_message=True) == "[U a]\n[A b "
    error = refused(chain, TALK, continue_final_message=True, add_generation_prompt=True)
    assert error.code == "invalid_combination"


def test_a_template_that_has_no_such_switch_says_so(tmp_path, tokenizer):
    always = template_of("{% for m in messages %}{{ m.content }}{% endfor %}:", tmp_path, tokenizer)
    assert refused(always, TALK, add_generation_prompt=False).param == "add_generation_prompt"
    assert refused(always, TALK, continue_final_message=True).param == "continue_final_message"
    assert prompt(always, TALK, add_generation_prompt=True) == "ab:"
    source = "{% if add_generation_prompt %}{% endif %}{{ messages[0].content }}"
    first = template_of(source, tmp_path, tokenizer)
    assert refused(first, TALK, continue_final_message=True).param == "continue_final_message"


@pytest.mark.parametrize("name", ["plain", "translate"])
def test_the_built_in_templates_have_the_switch(name, tokenizer):
    template = load_template(find("tiny"), name, tokenizer)
    assert template is not None
    whole = prompt(template, TALK)
    assert whole.startswith(prompt(template, TALK, add_generation_prompt=False))
    assert prompt(template, TALK, continue_final_message=True).endswith("b")
