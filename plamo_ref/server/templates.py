"""From a conversation to the text that a model continues.

Invariant: a template is data: it runs in Jinja's sandbox, where it can neither call into Python nor
change what it is given. A base model has none, and then a chat is refused, not guessed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from plamo_ref.errors import PlamoRefError
from plamo_ref.hub import EMBEDDED, find
from plamo_ref.sampling import SamplingParams
from plamo_ref.server.errors import bad
from plamo_ref.server.template_tools import TemplateTools
from plamo_ref.tokenizer import Plamo2Tokenizer

# What a template can do wrong with what a client sent.
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError)

TEMPLATE_REFUSES = "template_refuses"  # the code of such an error

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

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        extra: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt, up to where the assistant speaks.

        Args:
            extra: further names for the template; its own are not changed by them.
            add_generation_prompt: whether it ends with the beginning of the assistant's turn.

        Raises:
            ApiError: the template refuses these messages.
        """
        known = {**extra, **self.names}
        try:
            return self.template.render(
                known,
                messages=messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
            )
        except TEMPLATE_ERRORS as error:
            message = f"the chat template refuses the messages: {error}"
            raise bad(message, "messages", TEMPLATE_REFUSES) from None

    def add_bos(self, text: str) -> bool | None:
        """For `encode`: a template that writes BOS itself gets no second one, which no model has
        seen; None: as the checkpoint says."""
        bos = self.names.get("bos_token")
        return False if bos and text.startswith(bos) else None

    def with_stops(self, params: SamplingParams, tokenizer: Plamo2Tokenizer) -> SamplingParams:
        """Where the turns end: a token where the text is one (it may be no text), else a string."""
        ids, texts = list(params.stop_token_ids), list(params.stop)
        for stop in self.stops:
            token_id = tokenizer.id_of(stop)
            if token_id is None:
                texts.append(stop)
            else:
                ids.append(token_id)
        return replace(params, stop=texts, stop_token_ids=ids)


BUILT_IN: Mapping[str, tuple[str, Sequence[str]]] = {
    "plain": (PLAIN, ("\nuser:", "\nsystem:")),
    "translate": (TRANSLATE, ("<|plamo:op|>",)),
}


def load_template(
    folder: Path, wanted: str | None, tokenizer: Plamo2Tokenizer
) -> ChatTemplate | None:
    """The template to use: the one `wanted` (a built-in name or a file), else the checkpoint's own,
    else, for the embedded model, a plain transcript. None: there is none.

    Raises:
        TemplateLoadError: no such file, or it is no template.
    """
    if wanted is not None:
        if wanted in BUILT_IN:
            return _built_in(wanted, tokenizer)
        return _compile(_read(Path(wanted)), tokenizer, wanted)
    source = _own(folder)
    if source is not None:
        return _compile(source, tokenizer, str(folder))
    return _built_in("plain", tokenizer) if folder == find(EMBEDDED) else None


def _built_in(name: str, tokenizer: Plamo2Tokenizer) -> ChatTemplate:
    source, stops = BUILT_IN[name]
    return _compile(source, tokenizer, name, stops)


def _own(folder: Path) -> str | None:
    """A checkpoint's template: chat_template.jinja, or the one in tokenizer_config.json."""
    if (folder / "chat_template.jinja").is_file():
        return _read(folder / "chat_template.jinja")
    path = folder / "tokenizer_config.json"
    try:
        found = json.loads(_read(path)).get("chat_template") if path.is_file() else None
        if isinstance(found, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in found}
            found = named.get("default")
    except (ValueError, AttributeError) as error:
        raise TemplateLoadError(f"{path}: no chat template can be found in it: {error}") from None
    if found is not None and not isinstance(found, str):
        raise TemplateLoadError(f"{path}: chat_template is neither a text nor a list of them")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = ", ".join(BUILT_IN)
        message = f"chat template {path}: {error}; give a file, or one of: {names}"
        raise TemplateLoadError(message) from None


def _compile(
    source: str, tokenizer: Plamo2Tokenizer, where: str, stops: Sequence[str] = ()
) -> ChatTemplate:
    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    # As Hugging Face's, which templates are written for: the newline that ends a file is no text.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    names = {name: text for name, text in tokenizer.special_tokens.items() if text is not None}
    try:
        variables = meta.find_undeclared_variables(environment.parse(source))
        compiled = environment.from_string(source)
        tools = TemplateTools.of(source, environment)
        return ChatTemplate(compiled, names, tuple(stops), frozenset(variables), tools)
    except TemplateError as error:
        raise TemplateLoadError(f"chat template of {where}: {error}") from None
