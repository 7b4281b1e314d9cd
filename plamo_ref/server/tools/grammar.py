"""Grammars, in Lark's notation, for the calls that a form has.

Invariant: a text that follows one of these grammars is read by the form's reader as calls of the
given functions, each with arguments that fit the function's schema.

Each function's schema is a JSON grammar of its own, so that its references find their places.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from plamo_ref.chat.tool_forms import ToolForm
from plamo_ref.server.errors import bad
from plamo_ref.server.tools.schemas import Function

# As templates write JSON, which is what models have seen.
SPACED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# What a schema that is closed would fall out with, anywhere in it or beside its properties.
COMPOSED = {"allOf", "oneOf", "not", "if"}
OPEN = {"additionalProperties", "unevaluatedProperties", "patternProperties", "anyOf", "$ref"}
NAMED = {"properties", "$defs", "definitions"}  # name → schema
VALUES = {"const", "enum", "default", "examples"}  # no schemas
TEXT = r"TEXT: /(.|\n)*/"


def forced(form: ToolForm, functions: Sequence[Function], *, parallel: bool) -> str:
    """Calls and nothing else: at least one, and only one unless `parallel`."""
    return _joined("start: calls", *_calls(form, functions, parallel))


def free(form: ToolForm, functions: Sequence[Function], *, parallel: bool) -> str:
    """Any text, in which whatever begins as a call goes on as one."""
    rules = _calls(form, functions, parallel)
    if form.starts:  # a call stands at the beginning, or there is none
        other = rf"OTHER: /\s*([^\s{_escaped(form.starts)}](.|\n)*)?/"
        for opener in form.openers:
            other += rf" & ~/(.|\n)*{_escaped(opener)}(.|\n)*/"
        return _joined("start: calls | OTHER", other, *rules)
    opener = form.openers[0]
    assert form.begin.startswith(opener)
    rest = form.begin[len(opener) :]
    # Lazy: the first opener is the one, not a part of the text.
    lead = f"lead[lazy]: TEXT {_text(opener)}"
    region = f"opened: lead {_text(rest)} region_calls {_text(form.end)}"
    start = "start: opened* TEXT" if parallel else "start: TEXT | opened"
    return _joined(start, lead, TEXT, region, *rules)


def calls_or(
    form: ToolForm, functions: Sequence[Function], answer: Mapping[str, Any], *, parallel: bool
) -> str:
    """Calls and nothing else, or an answer in JSON."""
    rule = f"answer: %json {json.dumps({**answer, 'x-guidance': {'whitespace_flexible': False}})}"
    return _joined("start: calls | answer", rule, *_calls(form, functions, parallel))


def _calls(form: ToolForm, functions: Sequence[Function], parallel: bool) -> list[str]:
    """Rules: calls (regions), region_calls (what stands in a region), call."""
    many, regions = "", ""
    if parallel and form.between is not None:
        many = f" ({_text(form.between)} call)*"
    if parallel and form.joint is not None:
        regions = f" ({_text(form.joint)} region)*"
    rules = [
        f"calls: region{regions}",
        f"region: {_text(form.begin)} region_calls {_text(form.end)}",
        f"region_calls: call{many}",
        "call: " + " | ".join(f"call_{i}" for i in range(len(functions))),
    ]
    for i, function in enumerate(functions):
        head = form.head.replace("NAME", function.name)
        schema = json.dumps(arguments_schema(function))
        rules.append(f"call_{i}: {_text(head)} %json {schema} {_text(form.tail)}")
    return rules


def arguments_schema(function: Function) -> dict[str, Any]:
    """The function's schema, of an object: with the properties that it names and no others, where
    it does not say otherwise.

    Raises:
        ApiError: the schema is not one of an object.
    """
    schema = function.parameters or {"properties": {}}
    kind = schema.get("type", "object")
    if "object" not in (kind if isinstance(kind, list) else [kind]):
        message = f"the parameters of {function.name} are of type {kind!r}; they must be an object"
        raise bad(f"tools: {message}", "tools", "unsupported_grammar")
    if not COMPOSED & _keys(schema):
        schema = _closed(schema)
    return {**schema, "type": "object", "x-guidance": SPACED}


def _closed(schema: Any) -> Any:
    """A copy in which schemas that name properties allow no others."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy: dict[str, Any] = {}
    for key, value in schema.items():
        if key in NAMED and isinstance(value, dict):
            copy[key] = {name: _closed(named) for name, named in value.items()}
        else:
            copy[key] = value if key in VALUES else _closed(value)
    if isinstance(schema.get("properties"), dict) and not OPEN & schema.keys():
        copy["additionalProperties"] = False
    return copy


def _keys(schema: Any) -> set[str]:
    """All names in it, of keywords and of properties."""
    if isinstance(schema, list):
        return set().union(*map(_keys, schema))
    if not isinstance(schema, dict):
        return set()
    return schema.keys() | set().union(*map(_keys, schema.values()))


def _text(text: str) -> str:
    """As a literal; the empty one is nothing at all."""
    return json.dumps(text) if text else ""


def _escaped(text: str) -> str:
    """For a regex, in a class or outside."""
    return "".join(c if c.isalnum() or c in "<>_" else "\\" + c for c in text)


def _joined(*rules: str) -> str:
    return "\n".join(rules) + "\n"
