"""From a request's fields to `SamplingParams`, or to a clear 400.

Invariant: a field that the client gave either has its effect or is refused by name; one that it
left out, or gave as null, has the checkpoint's default, or else that of `SamplingParams`.
"""

from dataclasses import fields
from typing import Any

from plamo_ref.remote.calls import Delta
from plamo_ref.sampling import GuidedParams, SamplingParams
from plamo_ref.server.config import ServerConfig
from plamo_ref.server.errors import MAX_PARAM, ApiError, bad, conflict, shortened
from plamo_ref.server.openai.schemas import (
    ChatRequest,
    CompletionRequest,
    Conversation,
    Sampling,
    SchemaFormat,
    StructuredOutputs,
    TokenizeRequest,
)

MANY_TOKENS = 1 << 10  # biases and stop tokens, which are looked at one by one
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
    "cache_salt",
)


def names_many_tokens(request: Sampling) -> bool:
    """Whether making its parameters would keep the event loop too long."""
    return len(request.logit_bias or ()) + len(request.stop_token_ids or ()) > MANY_TOKENS


def check_model(name: str | None, config: ServerConfig) -> None:
    """None is the model that is served."""
    if name is not None and name not in config.model_names:
        served = " and ".join(map(repr, config.model_names))
        called = shortened(name, MAX_PARAM)
        message = f"the model {called!r} does not exist; this server has {served}"
        raise ApiError(404, message, "model", "model_not_found")


def no_conversation(request: TokenizeRequest) -> None:
    """A text has no template.

    Raises:
        ApiError: fields that only a conversation has.
    """
    for name in (*Conversation.model_fields, "tools"):
        if name != "add_special_tokens" and getattr(request, name) is not None:
            raise conflict(f"{name} goes with messages, not with prompt", name)


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
    if request.temperature is not None:
        given["temperature"] = request.temperature + 0.0  # -0.0 is 0.0
    if request.spaces_between_special_tokens and request.skip_special_tokens is False:
        field = "spaces_between_special_tokens"
        raise conflict(f"{field} is not supported: special tokens stand side by side", field)
    limit_logprobs("prompt_logprobs", request.prompt_logprobs, config)
    if request.prompt_logprobs is not None and request.stream:
        raise conflict("prompt_logprobs need stream to be false", "prompt_logprobs")
    if request.stream_options is not None and not request.stream:
        raise conflict("stream_options is only allowed when stream is true", "stream_options")
    if (request.min_tokens or 0) > max_tokens:
        message = f"min_tokens is {request.min_tokens}, but at most {max_tokens} tokens may follow"
        raise conflict(message, "min_tokens")
    given = {name: value for name, value in (given | more).items() if value is not None}
    assert given.keys() <= {f.name for f in fields(SamplingParams)}
    return SamplingParams(**{**config.sampling_defaults, **given})


def completion_params(
    request: CompletionRequest, config: ServerConfig, max_tokens: int
) -> SamplingParams:
    """For /v1/completions. `max_tokens` is at least 1 here, also where the client asked for 0."""
    if request.best_of not in (None, 0, request.n or 1):
        raise conflict("best_of other than n is not supported", "best_of")
    limit_logprobs("logprobs", request.logprobs, config)
    echoed = request.logprobs if request.echo else None
    asked = request.prompt_logprobs
    if None not in (echoed, asked) and echoed != asked:
        message = "prompt_logprobs and the logprobs of an echo have to be equal"
        raise conflict(message, "prompt_logprobs")
    return common_params(
        request,
        config,
        max_tokens,
        logprobs=request.logprobs,
        prompt_logprobs=echoed if asked is None else asked,
    )


def chat_params(
    request: ChatRequest, config: ServerConfig, max_tokens: int, calls: GuidedParams | None = None
) -> SamplingParams:
    """For /v1/chat/completions. `calls` is the grammar of tool calls, where one is needed."""
    if request.top_logprobs and not request.logprobs:
        raise conflict("top_logprobs needs logprobs to be true", "top_logprobs")
    limit_logprobs("top_logprobs", request.top_logprobs, config)
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    more: dict[str, Any] = {"logprobs": logprobs, "prompt_logprobs": request.prompt_logprobs}
    if calls is not None:
        more["guided"] = calls
    return common_params(request, config, max_tokens, **more)


def stop_reason(delta: Delta, params: SamplingParams) -> str | int | None:
    """The stop string or the stop token that ended a choice; as vLLM has it, None for EOS."""
    reason = delta.stop_reason
    return reason if isinstance(reason, str) or reason in params.stop_token_ids else None


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
            called = shortened(token, MAX_PARAM)
            raise bad(f"logit_bias: {called!r} is no token id", "logit_bias")
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
