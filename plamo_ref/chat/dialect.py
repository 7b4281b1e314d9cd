"""The Jinja that chat templates are written for: that of Hugging Face's Transformers.

Invariant: a template renders as Transformers renders it, and can do no more than there: it runs in
Jinja's sandbox, where it can neither call into Python nor change what it is given.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# What a template can do wrong with what a client sent.
TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    MemoryError,
    RecursionError,
)


class GenerationTag(Extension):
    """`{% generation %}` marks what an assistant has said, for training. Here it is text."""

    tags = {"generation"}  # noqa: RUF012  (as Jinja wants it)

    def parse(self, parser: Parser) -> nodes.Node:
        """The statements between the tags; what they set ends with them."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class TemplateNamespace(jinja2.utils.Namespace):
    """Jinja's `namespace`, without names that lead into Python."""

    def __init__(*args: Any, **values: Any) -> None:
        given = dict(*args[1:], **values)
        for name in given:
            _check_name(name)
        jinja2.utils.Namespace.__init__(args[0], given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def new_environment() -> ImmutableSandboxedEnvironment:
    """An environment for chat templates."""
    # The newline that ends a line with a block, or a file, is no text.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "namespace": TemplateNamespace,
    }
    return environment


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as templates get them: what is none is not there."""
    return [{k: v for k, v in message.items() if v is not None} for message in messages]


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own would escape what is special in HTML, and sort."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.sandbox.SecurityError(f"a namespace cannot have {name!r}: it begins with '_'")
