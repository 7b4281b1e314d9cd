"""The OpenAPI document, with the limits of this model and of these settings written into it.

Invariant: what a field may be on its own is in the document, so that a request that fits it is
refused for one of these reasons only, which no schema can say, each with its own `code`:

    context_length_exceeded   prompt and output do not fit into the model together
    invalid_combination       fields that exclude or need each other
    template_refuses          the chat template does not know a role, a name …
    unsupported_grammar       a schema, regex or grammar that cannot be followed
    unsupported_tools         tools, or calls of them, that the chat template does not know
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from plamo_ref.server.config import ServerConfig
from plamo_ref.server.openai import described
from plamo_ref.server.service import Service

GENERATORS = ("CompletionRequest", "ChatRequest", "ResponsesRequest")
MODEL_USERS = (*GENERATORS, "TokenizeRequest", "DetokenizeRequest")


def describe(app: FastAPI, service: Service) -> None:
    """Make the app's document that of this service."""
    general = app.openapi

    def openapi() -> dict[str, Any]:
        document = general()  # FastAPI keeps it: what is written into it stays
        answered, asked = described.schemas(), document["components"]["schemas"]
        shared = [name for name, said in answered.items() if asked.get(name, said) != said]
        assert not shared, f"requests and answers have one name: {shared}"
        asked |= answered
        _limit(document["components"]["schemas"], service)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _limit(schemas: Mapping[str, Any], service: Service) -> None:
    fields = {name: schemas[name]["properties"] for name in MODEL_USERS}
    ids = {"maximum": service.llm.vocab_size - 1}
    text = {"maxLength": service.max_characters}
    longest = service.llm.max_model_len - 1
    for named in fields.values():
        _narrow(named["model"], "string", enum=list(service.config.model_names))
    for name in GENERATORS:
        _limit_sampling(fields[name], service.config)
        _narrow(fields[name]["max_tokens"], "integer", maximum=longest)
        _narrow(fields[name]["max_completion_tokens"], "integer", maximum=longest)
        _narrow_items(fields[name]["stop_token_ids"], **ids)
        bias = _options(fields[name]["logit_bias"], "object")
        bias[0]["propertyNames"] = {"pattern": below(service.llm.vocab_size)}
    _narrow(fields["ResponsesRequest"]["max_output_tokens"], "integer", maximum=longest)
    for name in ("ChatRequest", "ResponsesRequest"):
        _narrow(fields[name]["top_logprobs"], "integer", maximum=service.config.max_logprobs)
    _narrow(fields["TokenizeRequest"]["prompt"], "string", **text)
    _narrow_items(fields["DetokenizeRequest"]["tokens"], **ids)
    logprobs = fields["CompletionRequest"]["logprobs"]
    _narrow(logprobs, "integer", maximum=service.config.max_logprobs)
    prompt = fields["CompletionRequest"]["prompt"]
    _narrow(prompt, "string", **text)
    for option in _options(prompt, "array"):
        one = option["items"]["type"] == "integer"  # one prompt in ids, else several prompts
        option["maxItems"] = longest if one else service.config.max_prompts
        if option["items"]["type"] == "string":
            option["items"] |= text
        else:
            (option if one else option["items"])["maxItems"] = longest
            (option if one else option["items"])["items"] |= ids


def _limit_sampling(fields: Mapping[str, Any], config: ServerConfig) -> None:
    _narrow(fields["n"], "integer", maximum=config.max_choices)
    _narrow(fields["prompt_logprobs"], "integer", maximum=config.max_logprobs)
    _narrow(fields["stop"], "string", maxLength=config.max_stop_length)
    _narrow(fields["stop"], "array", maxItems=config.max_stops)
    _narrow_items(fields["stop"], maxLength=config.max_stop_length)


def _options(field: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The alternatives of a field that have this type."""
    return [option for option in field.get("anyOf", [field]) if option.get("type") == kind]


def _narrow(field: dict[str, Any], kind: str, **keys: Any) -> None:
    for option in _options(field, kind):
        option |= keys


def _narrow_items(field: dict[str, Any], **keys: Any) -> None:
    for option in _options(field, "array"):
        option["items"] |= keys


def below(limit: int) -> str:
    """A regex for the decimal numbers from 0 to `limit` - 1, without leading zeros.

    >>> below(5120)
    '^(0|[1-9][0-9]{0,2}|[1-4][0-9]{3}|5[0-0][0-9]{2}|51[0-1][0-9]{1})$'
    """
    digits = str(limit)
    shorter = ["0", f"[1-9][0-9]{{0,{len(digits) - 2}}}"] if len(digits) > 1 else []
    for place, digit in enumerate(digits):
        first = 1 if place == 0 and len(digits) > 1 else 0
        rest = len(digits) - place - 1
        if int(digit) > first:
            smaller = f"{digits[:place]}[{first}-{int(digit) - 1}]"
            shorter.append(smaller + (f"[0-9]{{{rest}}}" if rest else ""))
    return f"^({'|'.join(shorter)})$"
