"""From a conversation to the text that a model continues.

Invariant: a template is data, rendered in Transformers' dialect (template_dialect.py). A base model
has none, and then a chat is refused, not guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, meta

from plamo_ref.chat.dialect import (
    TEMPLATE_ERRORS,
    new_environment,
    plain_messages,
)
from plamo_ref.chat.template_tools import TemplateTools
from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.hub import EMBEDDED, TEMPLATE_FOLDER, find
from plamo_ref.intake.json_files import is_file, is_there, read_object, read_text
from plamo_ref.intake.values import shown
from plamo_ref.sampling import SamplingParams
from plamo_ref.text.tokenizer import Plamo2Tokenizer

MAX_TEMPLATE_BYTES = 4 << 20
TEMPLATE_FILE = "chat_template.jinja"
BLOCK = "<|plamo:op|>"  # begins a block of the makers' translation format, and no text has it
DEFAULT, WITH_TOOLS = "default", "tool_use"  # names that Transformers gives a meaning

PLAIN = """\
{% for message in messages %}
{{ message.role }}: {{ message.content }}
{% endfor %}
{% if add_generation_prompt %}
assistant:
{%- endif %}"""

# Each turn is a block: the user's are input, the assistant's are output. The languages come from
# chat_template_kwargs; without them the model finds out by itself, between English and Japanese.
TRANSLATE = """\
{% set source = source_lang or 'English|Japanese' %}
{% set output = '<|plamo:op|>output' + (' lang=' + target_lang if target_lang else '') %}
<|plamo:op|>dataset
translation
{% for message in messages %}
{% if message.role == 'user' %}
<|plamo:op|>input lang={{ source }}
{{ message.content }}
{% elif message.role == 'assistant' %}
{{ output }}
{{ message.content }}
{% else %}
{{ raise_exception('the translate format has no ' + message.role + ' message') }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ output + '\\n' }}
{%- endif %}"""


class TemplateRefusesError(PlamoRefError, ValueError):
    """A template that will not write these messages; the message is its own."""


class TemplateLoadError(PlamoRefError, ValueError):
    """A chat template that cannot be read; the message names the file."""


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled template, and the texts that end the assistant's turn besides the model's own."""

    template: Template
    names: Mapping[str, Any]  # what every rendering sees: bos_token …
    stops: Sequence[str] = ()
    variables: frozenset[str] = frozenset()  # what it asks for by name
    tools: TemplateTools = field(default_factory=TemplateTools)
    with_tools: Template | None = None  # the one for requests with tools; None: the same

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        extra: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt, up to where the assistant speaks. Tools and documents that are absent are
        none to the template, which can ask for that.

        Args:
            extra: further names for the template; its own are not changed by them.
            add_generation_prompt: whether it ends with the beginning of the assistant's turn.

        Raises:
            TemplateRefusesError: the template refuses these messages.
        """
        template = self.template if tools is None else self.with_tools or self.template
        try:
            return template.render(
                {"documents": None, **extra, **self.names},
                messages=plain_messages(messages),
                tools=tools,
                add_generation_prompt=add_generation_prompt,
            )
        except TEMPLATE_ERRORS as error:
            message = f"the chat template refuses the messages: {error}"
            raise TemplateRefusesError(message) from None

    def add_bos(self, text: str) -> bool | None:
        """For `encode`: a template that writes BOS itself gets no second one, which no model has
        seen; None: as the checkpoint says."""
        bos = self.names.get("bos_token")
        return False if bos and text.startswith(bos) else None

    def with_stops(self, params: SamplingParams, tokenizer: Plamo2Tokenizer) -> SamplingParams:
        """Where the turns end: a token where the text is one (it may be no text), else a string.

        A turn ends where a block of the makers' format begins, whatever the template says, unless
        the end of the text is to be ignored.
        """
        ids, texts = list(params.stop_token_ids), list(params.stop)
        block = [] if params.ignore_eos or tokenizer.id_of(BLOCK) is None else [BLOCK]
        for stop in dict.fromkeys((*self.stops, *block)):
            token_id = tokenizer.id_of(stop)
            if token_id is None:
                texts.append(stop)
            else:
                ids.append(token_id)
        return replace(params, stop=texts, stop_token_ids=ids)


BUILT_IN: Mapping[str, tuple[str, Sequence[str]]] = {
    "plain": (PLAIN, ("\nuser:", "\nsystem:")),
    "translate": (TRANSLATE, (BLOCK,)),
}


def load_template(
    folder: Path, wanted: str | None, tokenizer: Plamo2Tokenizer
) -> ChatTemplate | None:
    """The template to use: the one `wanted` (a built-in name, a name that the checkpoint has, or a
    file), else the checkpoint's own, else, for the embedded model, a plain transcript. None: there
    is none.

    Raises:
        TemplateLoadError: no such file, or it is no template.
    """
    if wanted is not None and wanted in BUILT_IN:
        return _built_in(wanted, tokenizer)
    if wanted is not None and is_file(Path(wanted)):
        return _compile(_read(Path(wanted)), tokenizer, wanted)
    own = _own(folder)
    if wanted is not None:
        return _compile(own.get(wanted) or _read(Path(wanted)), tokenizer, wanted)
    if own:
        if DEFAULT not in own:
            names = ", ".join(map(shown, own))
            raise TemplateLoadError(
                f"{folder} has chat templates, but none is the default: choose one of {names} with "
                "--chat-template"
            )
        return _compile(own[DEFAULT], tokenizer, str(folder), with_tools=own.get(WITH_TOOLS))
    return _built_in("plain", tokenizer) if folder == find(EMBEDDED) else None


def _built_in(name: str, tokenizer: Plamo2Tokenizer) -> ChatTemplate:
    source, stops = BUILT_IN[name]
    return _compile(source, tokenizer, name, stops)


def _own(folder: Path) -> dict[str, str]:
    """A checkpoint's templates by name: chat_template.jinja and the files of a folder beside it, or
    else what tokenizer_config.json says."""
    files = {path.stem: path for path in sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))}
    if is_there(folder / TEMPLATE_FILE):
        files[DEFAULT] = folder / TEMPLATE_FILE
    if files:
        return {name: _read(path) for name, path in files.items()}
    path = folder / "tokenizer_config.json"
    told = read_object(path, TemplateLoadError).get("chat_template") if is_there(path) else None
    if told is None or isinstance(told, str):
        return {} if told is None else {DEFAULT: told}
    named = {}
    for entry in told if isinstance(told, list) else [told]:
        pair = entry if isinstance(entry, dict) else {}
        name, source = pair.get("name"), pair.get("template")
        if not isinstance(name, str) or not isinstance(source, str):
            raise TemplateLoadError(
                f"{path}: chat_template must be a text, or a list of objects with a name and a "
                f"template; found {shown(entry)}"
            )
        named[name] = source
    return named


def _read(path: Path) -> str:
    try:
        return read_text(path, TemplateLoadError, MAX_TEMPLATE_BYTES)
    except TemplateLoadError as error:
        message = f"chat template {error}; give a file, or one of: {', '.join(BUILT_IN)}"
        raise TemplateLoadError(message) from None


def _compile(
    source: str,
    tokenizer: Plamo2Tokenizer,
    where: str,
    stops: Sequence[str] = (),
    with_tools: str | None = None,
) -> ChatTemplate:
    environment = new_environment()
    names = {name: text for name, text in tokenizer.special_tokens.items() if text is not None}
    try:
        template = environment.from_string(source)
        other = None if with_tools is None else environment.from_string(with_tools)
        variables = meta.find_undeclared_variables(environment.parse(source))
        tools = TemplateTools.of(source, environment)
        if with_tools is not None:  # earlier calls come with tools and without: both must show them
            variables &= meta.find_undeclared_variables(environment.parse(with_tools))
            calls = tools.shows_calls
            tools = TemplateTools.of(with_tools, environment)
            tools = replace(tools, shows_calls=calls and tools.shows_calls)
    except (TemplateError, RecursionError, SyntaxError) as error:  # the last: of what Jinja wrote
        raise TemplateLoadError(f"chat template of {where}: {error}") from None
    variables -= environment.globals.keys()
    return ChatTemplate(template, names, tuple(stops), frozenset(variables), tools, other)
