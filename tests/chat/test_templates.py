"""Chat templates beside the library that they are written for.

Invariant tested: a template gives the text that Transformers gives, or is an error in both; and of
a checkpoint's templates the one is taken that Transformers takes.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo_ref.chat.templates import (
    ChatTemplate,
    TemplateLoadError,
    TemplateRefusesError,
    load_template,
)
from plamo_ref.intake.hub import find
from plamo_ref.text.tokenizer import Plamo2Tokenizer

Messages = Sequence[Mapping[str, Any]]
TOKENIZER = Plamo2Tokenizer.from_folder(find("tiny"))

TEMPLATES = {
    "turns": """
{{ bos_token }}{% for message in messages %}
    {% if message.role == 'system' and not loop.first %}
        {{ raise_exception('a system message comes first') }}
    {% endif %}
<|im_start|>{{ message['role'] }}
{{ message.content | trim }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}
""",
    "tojson": "{{ messages | tojson }}",
    "tojson, every argument": (
        "{{ messages[0] | tojson(indent=2) }}|{{ messages | tojson(ensure_ascii=True) }}|"
        "{{ tools | tojson(separators=(',', ':'), sort_keys=True) }}"
    ),
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
        "{{ m.content }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}"
    ),
    "generation": (
        "{% set x = 1 %}{% for m in messages %}{% if m.role == 'assistant' %}\n"
        "    {% generation %}\n{{ m.content }}{% set x = 2 %}{{ x }}\n    {% endgeneration %}\n"
        "{% else %}{{ x }}{{ m.content }}{% endif %}{% endfor %}{{ x }}"
    ),
    "what generation sets": (
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}"
    ),
    "break within generation": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}"
        "{% endfor %}"
    ),
    "what is absent": (
        "{{ tools is none }} {{ tools is defined }} {{ documents is none }} "
        "{{ documents is defined }} {{ nothing is defined }} {{ nothing }} "
        "{% for m in messages %}{{ m.name is defined }} {{ m.tool_calls is defined }} "
        "{{ 'content' in m }} {{ m.content is none }} {% endfor %}"
    ),
    "tools": (
        "{% if tools %}# Tools\n{% for tool in tools %}{{ tool.function.name }}: "
        "{{ tool | tojson }}\n{% endfor %}{% endif %}"
        "{% for m in messages %}{% if m.tool_calls %}{% for call in m.tool_calls %}"
        "<call>{{ call.function.arguments | tojson }}</call>{% endfor %}{% else %}"
        "{{ m.content }}{% endif %}{% endfor %}"
    ),
    "documents": "{% for d in documents or [] %}{{ d.title }}: {{ d.text }}\n{% endfor %}.",
    "date": "{{ strftime_now('%Y-%m-%d') }}{{ strftime_now('%%') }}",
    "namespace": (
        "{% set ns = namespace(seen=false, n=0) %}{% for m in messages %}"
        "{% set ns.n = ns.n + 1 %}{% set ns.seen = ns.seen or m.role == 'system' %}{% endfor %}"
        "{{ ns.seen }} {{ ns.n }} {{ dict(a=1) | tojson }} {{ range(3) | list }}"
    ),
    "private namespace": "{% set ns = namespace(_x=1) %}{{ ns._x }}",
    "private namespace, later": "{% set ns = namespace() %}{% set ns.__x__ = 1 %}x",
    "blocks and white space": (
        "  {% if true %}  \n  a  \n  {%- endif %}\n\n\t{# remark #}\nb\n{{- eos_token -}}\n  c\n\n"
    ),
    "macro": (
        "{% macro say(m, end='.') %}{{ m.role | upper }}: {{ m.content }}{{ end }}{% endmacro %}"
        "{% for m in messages %}{{ say(m, end='!\\n') }}{% endfor %}"
    ),
    "slices and methods": (
        "{% for m in messages[1:] %}{{ m.content.split(' ')[-1].strip('<>') }}"
        "{{ m.items() | list | length }}{{ m.get('nothing', 7) }}{% endfor %}"
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}"
    ),
    "argument": "{{ enable_thinking | default('unset') }}{{ bos_token }}{{ pad_token }}",
    "changes what it is given": "{% set _ = messages.append(1) %}{{ messages | length }}",
    "reaches into Python": "{{ ''.__class__.__mro__ }}{{ messages.__class__ }}x",
    "calls Python": "{{ messages[0].__class__.__base__.__subclasses__() }}",
    "too many": "{% for i in range(10000000) %}{% endfor %}",
    "divides by nothing": "{{ messages | length / 0 }}",
    "missing message": "{{ messages[99].content }}",
}


@cache
def theirs() -> Any:
    """A tokenizer of Transformers with our special tokens."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<|plamo:unk|>": 0}, unk_token="<|plamo:unk|>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, **TOKENIZER.special_tokens)


def their_text(source: str, messages: Messages, **given: Any) -> str | None:
    """What Transformers makes of it; None: an error."""
    try:
        return theirs().apply_chat_template(
            messages, chat_template=source, tokenize=False, add_generation_prompt=True, **given
        )
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError):
        return None


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, ChatTemplate | None]:
    """Our templates by name; None: an error."""
    folder, found = tmp_path_factory.mktemp("templates"), {}
    for name, source in TEMPLATES.items():
        path = folder / "x.jinja"
        path.write_text(source)
        try:
            found[name] = load_template(folder, str(path), TOKENIZER)
        except TemplateLoadError:
            found[name] = None
    return found


def our_text(template: ChatTemplate | None, messages: Messages, **given: Any) -> str | None:
    """What we make of it; None: an error."""
    tools = given.pop("tools", None)
    try:
        return None if template is None else template.render(messages, given, tools)
    except TemplateRefusesError:
        return None


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ['<b>猫\'s & "x"</b>', "  a\n", "{{ x }}", "\u2028", "😀", ""]
)
calls = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": st.just("f"), "arguments": st.dictionaries(texts, texts, max_size=2)}
            ),
        }
    ),
    min_size=1,
    max_size=2,
)
messages_drawn = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": texts},
        optional={"name": texts | st.none(), "tool_calls": calls | st.none()},
    ),
    min_size=1,
    max_size=5,
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather <today>, d'accord?",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}
given_drawn = st.fixed_dictionaries(
    {},
    optional={
        "tools": st.sampled_from([None, [TOOL], [TOOL, TOOL]]),
        "documents": st.sampled_from([None, [{"title": "題", "text": "文"}]]),
        "enable_thinking": st.booleans(),
    },
)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=20, deadline=None)
@given(messages=messages_drawn, given=given_drawn)
def test_templates_render_as_in_transformers(ours, name, messages, given):
    expected = their_text(TEMPLATES[name], messages, **given)
    assert our_text(ours[name], messages, **given) == expected


def test_the_corpus_has_texts_and_errors():
    """A comparison of nothing but errors would prove nothing."""
    one = [{"role": "user", "content": "<b>"}, {"role": "assistant", "content": "x"}]
    found = {name: their_text(source, one) for name, source in TEMPLATES.items()}
    errors = {name for name, text in found.items() if text is None}
    assert errors == {
        "private namespace",
        "private namespace, later",
        "changes what it is given",
        "calls Python",
        "too many",
        "divides by nothing",
        "missing message",
        "reaches into Python",
    }


# --- which one ------------------------------------------------------------------------------------


def save(folder: Path, told: Any = None, files: Mapping[str, str] | None = None) -> None:
    config = {} if told is None else {"chat_template": told}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, source in (files or {}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source)


def chosen(folder: Path, tools: Any = None, wanted: str | None = None) -> str | None:
    template = load_template(folder, wanted, TOKENIZER)
    return None if template is None else template.render([{"role": "user"}], {}, tools)


NAMED = [{"name": "tool_use", "template": "for tools"}, {"name": "default", "template": "usual"}]
EXTRA = "additional_chat_templates/tool_use.jinja"


def test_of_several_templates_tools_have_their_own(tmp_path):
    save(tmp_path, NAMED)
    assert chosen(tmp_path) == "usual"
    assert chosen(tmp_path, [TOOL]) == "for tools"
    assert chosen(tmp_path, wanted="tool_use") == "for tools"
    save(tmp_path, NAMED[1:])
    assert chosen(tmp_path, [TOOL]) == "usual"


def test_files_of_templates_win_over_the_config(tmp_path):
    save(tmp_path, NAMED, {"chat_template.jinja": "a file"})
    assert chosen(tmp_path) == chosen(tmp_path, [TOOL]) == "a file"
    save(tmp_path, NAMED, {EXTRA: "a file for tools"})
    assert chosen(tmp_path) == "a file"
    assert chosen(tmp_path, [TOOL]) == "a file for tools"


def test_transformers_chooses_the_same(tmp_path):
    tokenizer = theirs()
    for told, files in (
        ("only", {}),
        (NAMED, {}),
        (None, {"chat_template.jinja": "a file"}),
        (NAMED, {"chat_template.jinja": "a file", EXTRA: "a file for tools"}),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        tokenizer.save_pretrained(folder)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        save(folder, told, files)
        read = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(config | read))
        loaded = type(tokenizer).from_pretrained(folder)
        for tools in (None, [TOOL]):
            message = [{"role": "user", "content": "x"}]
            theirs_is = loaded.apply_chat_template(message, tools=tools, tokenize=False)
            assert chosen(folder, tools) == theirs_is


def test_templates_without_a_default_must_be_chosen(tmp_path):
    save(tmp_path, [{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}])
    with pytest.raises(TemplateLoadError, match=r"one of 'rag', 'tool_use' with --chat-template"):
        chosen(tmp_path)
    assert chosen(tmp_path, wanted="rag") == "x"


@pytest.mark.parametrize("told", [3, ["x"], [{"name": "default"}], {"default": "x"}, [[]], True])
def test_a_chat_template_that_is_none_is_named(tmp_path, told):
    save(tmp_path, told)
    with pytest.raises(TemplateLoadError, match=r"tokenizer_config\.json: chat_template must be"):
        chosen(tmp_path)


def test_template_files_that_cannot_be_read_are_named(tmp_path):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 1\n"
    save(tmp_path, files={"chat_template.jinja": pointer})
    with pytest.raises(TemplateLoadError, match=r"chat_template\.jinja: a Git LFS pointer"):
        chosen(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").mkdir()
    with pytest.raises(TemplateLoadError, match=r"chat_template\.jinja: expected a file, found a"):
        chosen(tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% for x in y %}" * 30 + "{% endfor %}" * 30,  # more than Python can nest
        "{% if x %}" * 3000 + "{% endif %}" * 3000,
        "{% break %}",
    ],
)
def test_templates_that_cannot_be_compiled_are_named(tmp_path, source):
    (tmp_path / "bad.jinja").write_text(source)
    with pytest.raises(TemplateLoadError, match=r"chat template of .*bad\.jinja: ") as caught:
        chosen(tmp_path, wanted=str(tmp_path / "bad.jinja"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ [1] | xmlattr }}",
        "{{ strftime_now(1) }}",
        "{{ messages | tojson(indent=[]) }}",
    ],
)
def test_what_goes_wrong_in_a_template_is_a_refusal(tmp_path, source):
    (tmp_path / "bad.jinja").write_text(source)
    with pytest.raises(TemplateRefusesError, match="the chat template refuses the messages"):
        chosen(tmp_path, wanted=str(tmp_path / "bad.jinja"))
