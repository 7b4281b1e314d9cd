"""From a request's fields to `SamplingParams`, or to a clear 400.

Invariant: a field that the client gave either has its effect or is refused by name; one that it
left out, or gave as null, has the default of `SamplingParams`.
"""

from dataclasses import fields
from typing import Any

from plamo_ref.sampling import GuidedParams, SamplingParams
from plamo_ref.server.config import ServerConfig
from plamo_ref.server.errors import ApiError, bad, conflict
from plamo_ref.server.schemas import (
    ChatRequest,
    CompletionRequest,
    Sampling,
    SchemaFormat,
    StructuredOutputs,
)

PLAIN = (
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "min_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "stop_token_ids",
)


def check_model(name: str, config: ServerConfig) -> None:
    if name != config.model_name:
        message = f"the model {name!r} does not exist; this server has {config.model_name!r}"
        raise ApiError(404, message, "model", "model_not_found")


def common_params(
    request: Sampling, config: ServerConfig, max_tokens: int, **more: Any
) -> SamplingParams:
    """The parameters that completions and chats share; `more` are further fields.

    Raises:
        ApiError, SamplingError, GuidedError: a value that cannot be.
    """
    given: dict[str, Any] = {name: getattr(request, name) for name in PLAIN}
    given |= {
        "seed": None if request.seed is None else _int64(request.seed),
        "n": _choices(request, config),
        "stop": _stops(request, config),
        "logit_bias": _logit_bias(request.logit_bias),
        "guided": guided(request),
        "max_tokens": max_tokens,
    }
    if request.bad_words:
        raise bad("bad_words are not supported: logit_bias -100 forbids a token", "bad_words")
    if request.stream_options is not None and not request.stream:
        raise conflict("stream_options is only allowed when stream is true", "stream_options")
    if (request.min_tokens or 0) > max_tokens:
        message = f"min_tokens is {request.min_tokens}, but at most {max_tokens} tokens may follow"
        raise conflict(message, "min_tokens")
    given = {name: value for name, value in (given | more).items() if value is not None}
    assert given.keys() <= {f.name for f in fields(SamplingParams)}
    return SamplingParams(**given)


def completion_params(
    request: CompletionRequest, config: ServerConfig, max_tokens: int
) -> SamplingParams:
    """For /v1/completions. `max_tokens` is at least 1 here, also where the client asked for 0."""
    if request.suffix:
        raise bad("suffix is not supported: the model continues, it does not insert", "suffix")
    if request.best_of not in (None, 0, request.n or 1):
        raise conflict("best_of other than n is not supported", "best_of")
    limit_logprobs("logprobs", request.logprobs, config)
    prompt_logprobs = request.logprobs if request.echo else None
    return common_params(
        request, config, max_tokens, logprobs=request.logprobs, prompt_logprobs=prompt_logprobs
    )


def chat_params(
    request: ChatRequest, config: ServerConfig, max_tokens: int, calls: GuidedParams | None = None
) -> SamplingParams:
    """For /v1/chat/completions. `calls` is the grammar of tool calls, where one is needed."""
    for name, instead in (("functions", "use tools"), ("documents", "write them into a message")):
        if getattr(request, name):
            raise bad(f"{name} are not supported: {instead}", name)
    if request.top_logprobs and not request.logprobs:
        raise conflict("top_logprobs needs logprobs to be true", "top_logprobs")
    limit_logprobs("top_logprobs", request.top_logprobs, config)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    more = {} if calls is None else {"guided": calls}
    return common_params(request, config, max_tokens, logprobs=logprobs, **more)


def limit_logprobs(name: str, value: int | None, config: ServerConfig) -> None:
    if value is not None and value > config.max_logprobs:
        raise bad(f"{name} may be at most {config.max_logprobs}, not {value}", name)


def _choices(request: Sampling, config: ServerConfig) -> int:
    n = request.n or 1
    if n > config.max_choices:
        raise bad(f"n may be at most {config.max_choices}, not {n}", "n")
    return n


def _stops(request: Sampling, config: ServerConfig) -> list[str]:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > config.max_stops:
        raise bad(f"stop: {len(stops)} strings, at most {config.max_stops} may be", "stop")
    if any(len(stop) > config.max_stop_length for stop in stops):
        raise bad(f"stop: a string has at most {config.max_stop_length} characters", "stop")
    return [stop for stop in stops if stop]  # clients send "" for none


def _int64(number: int) -> int:
    """Itself, or what a 64-bit integer makes of a longer one."""
    return (number + 2**63) % 2**64 - 2**63


def _logit_bias(bias: dict[str, float] | None) -> dict[int, float] | None:
    if bias is None:
        return None
    for token in bias:
        if not (token.isascii() and token.isdigit() and len(token) < 19):
            raise bad(f"logit_bias: {token!r} is no token id", "logit_bias")
    return {int(token): value for token, value in bias.items()}


def guided(request: Sampling) -> GuidedParams | None:
    """The grammar asked for: OpenAI's response_format, vLLM's guided_… or structured_outputs."""
    asked: dict[str, tuple[str, Any]] = {
        "guided_json": ("json", request.guided_json),
        "guided_regex": ("regex", request.guided_regex),
        "guided_choice": ("choice", request.guided_choice),
        "guided_grammar": ("grammar", request.guided_grammar),
    }
    form = request.response_format
    if isinstance(form, SchemaFormat):
        asked["response_format"] = ("json", form.json_schema.schema_)
    elif form is not None and form.type == "json_object":
        asked["response_format"] = ("json_object", True)
    outputs = request.structured_outputs or StructuredOutputs()
    for name, value in outputs.model_dump(by_alias=True, exclude_none=True).items():
        if value is not False:
            asked[f"structured_outputs.{name}"] = (name, value)
    given = {field: what for field, what in asked.items() if what[1] is not None}
    if not given:
        return None
    if len(given) > 1:
        raise conflict(f"{' and '.join(given)} exclude each other", next(iter(given)))
    ((kind, value),) = given.values()
    return GuidedParams(**{kind: value})
