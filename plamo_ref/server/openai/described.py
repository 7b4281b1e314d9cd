"""Which route answers what, for the OpenAPI document.

Invariant: every answer is one of `answers.py`, and every class of it has its schema here.
"""

from typing import Any

from msgspec import Struct
from msgspec.json import schema_components

from plamo_ref.server.errors import ErrorBody
from plamo_ref.server.openai import answers

Responses = dict[int | str, dict[str, Any]]
REF = "#/components/schemas/{name}"


def _said(by: type[Struct], text: str = "Success.", *, streams: bool = False) -> dict[str, Any]:
    """What the document says of an answer."""
    content: dict[str, Any] = {
        "application/json": {"schema": {"$ref": REF.format(name=by.__name__)}}
    }
    if streams:  # OpenAPI 3.1 describes one event of a stream: of ours, a chunk in JSON or [DONE]
        data = {"properties": {"data": {"type": "string"}}, "required": ["data"]}
        content["text/event-stream"] = {"schema": {"type": "object", **data}}
    return {"description": text, "content": content}


REFUSALS = {
    400: "The client's mistake.",
    401: "No key, or a wrong one.",
    404: "No such model, or no such path.",
    405: "Not with this method.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    429: "Too many requests are under way.",
    500: "The engine ended, or a bug.",
    503: "There is no engine at the moment.",
}
ANSWERS: Responses = {status: _said(ErrorBody, text) for status, text in REFUSALS.items()}
# FastAPI would add 422, which is never sent: whatever does not fit is a 400.
ANSWERS["4XX"] = _said(ErrorBody, "The client's mistake.")

COMPLETION: Responses = {200: _said(answers.CompletionAnswer, streams=True)}
CHAT: Responses = {200: _said(answers.ChatAnswer, streams=True)}
RESPONSE: Responses = {200: _said(answers.ResponseAnswer, streams=True)}
MODELS: Responses = {200: _said(answers.ModelList)}
MODEL: Responses = {200: _said(answers.ModelCard)}
TOKENIZED: Responses = {200: _said(answers.Tokenized)}
DETOKENIZED: Responses = {200: _said(answers.Detokenized)}
TOKENIZER: Responses = {200: _said(answers.TokenizerInfo)}
RESET: Responses = {200: _said(answers.Reset)}
VERSION: Responses = {200: _said(answers.Version)}
HEALTH: Responses = {200: _said(answers.Health), 503: _said(answers.Health, "No engine.")}
METRICS: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


def schemas() -> dict[str, Any]:
    """By name, for the components of the document."""
    classes = [each for each in vars(answers).values() if isinstance(each, type)]
    structs = [ErrorBody, *(each for each in classes if issubclass(each, Struct))]
    structs.remove(Struct)
    described = schema_components(structs, ref_template=REF)[1]
    for of_one in described.values():
        with_default = [name for name, field in of_one["properties"].items() if "default" in field]
        of_one["required"] += with_default  # a default is written as well
    return described
