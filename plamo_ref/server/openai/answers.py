"""What the routes answer, for the OpenAPI document. The answers themselves are written by hand.

Invariant: what is served fits what is said here; a test reads the document and asks the server.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from plamo_ref.server.errors import ErrorBody

Responses = dict[int | str, dict[str, Any]]
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
ANSWERS: Responses = {
    status: {"model": ErrorBody, "description": text} for status, text in REFUSALS.items()
}
# FastAPI would add 422, which is never sent: whatever does not fit is a 400.
ANSWERS["4XX"] = {"model": ErrorBody, "description": "The client's mistake."}


class PromptDetails(BaseModel):
    """Of the tokens of prompts."""

    cached_tokens: int = Field(description="They need not be computed: others began alike.")


class Usage(BaseModel):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Columns(BaseModel):
    """Log probabilities of a completion."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Scored(BaseModel):
    """A token that is, or could be, in a prompt."""

    logprob: float
    rank: int
    decoded_token: str


PromptToken = dict[str, Scored]  # by token id


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: Columns | None
    finish_reason: str | None
    stop_reason: str | int | None
    prompt_token_ids: list[int] | None = Field(description="If return_token_ids is true.")
    token_ids: list[int] | None = Field(description="If return_token_ids is true.")
    prompt_logprobs: list[PromptToken | None] | None = Field(description="If asked for.")


class CompletionAnswer(BaseModel):
    """Of POST /v1/completions."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class CalledFunction(BaseModel):
    """A function, and its arguments in JSON."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the assistant wants to be made."""

    id: str
    type: str
    function: CalledFunction


class AssistantMessage(BaseModel):
    """What the assistant says, and calls."""

    role: str
    content: str | None
    refusal: str | None
    tool_calls: list[ToolCall] = []


class TopToken(BaseModel):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(TopToken):
    """A token, and those that could have come instead."""

    top_logprobs: list[TopToken]


class ChatTokens(BaseModel):
    """Log probabilities of a turn."""

    content: list[ChatToken]
    refusal: list[ChatToken] | None


class ChatChoice(BaseModel):
    """One next turn."""

    index: int
    message: AssistantMessage
    logprobs: ChatTokens | None
    finish_reason: str
    stop_reason: str | int | None
    token_ids: list[int] | None = Field(description="If return_token_ids is true.")


class ChatAnswer(BaseModel):
    """Of POST /v1/chat/completions."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = Field(description="If return_token_ids is true.")
    prompt_logprobs: list[PromptToken | None] | None = Field(description="If asked for.")


class ResponseAnswer(BaseModel):
    """Of POST /v1/responses. Its items are messages and calls of functions."""

    id: str
    object: str
    created_at: int
    status: str
    model: str
    error: dict[str, str] | None
    incomplete_details: dict[str, str] | None
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None
    store: bool
    tools: list[dict[str, Any]]


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: str
    created: int
    owned_by: str
    root: str
    max_model_len: int


class ModelList(BaseModel):
    """Of GET /v1/models."""

    object: str
    data: list[ModelCard]


class Tokenized(BaseModel):
    """Of POST /tokenize."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None


class Detokenized(BaseModel):
    """Of POST /detokenize."""

    prompt: str


class TokenizerInfo(BaseModel):
    """Of GET /tokenizer_info; the names are those that evaluation harnesses look for."""

    tokenizer_class: str
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None


class Version(BaseModel):
    """Of GET /version."""

    version: str


class Reset(BaseModel):
    """Of POST /reset_prefix_cache."""

    success: bool


class Health(BaseModel):
    """Of GET /health."""

    status: str
    restarts: int


def _ok(model: type[BaseModel], more: Mapping[str, Any] | None = None) -> Responses:
    return {200: {"model": model, "content": dict(more or {})}}


# OpenAPI 3.1 describes one event of a stream: of ours, a chunk in JSON or [DONE].
_EVENT = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
_STREAM = {"text/event-stream": {"schema": _EVENT}}
COMPLETION = _ok(CompletionAnswer, _STREAM)
CHAT = _ok(ChatAnswer, _STREAM)
RESPONSE = _ok(ResponseAnswer, _STREAM)
MODELS = _ok(ModelList)
MODEL = _ok(ModelCard)
TOKENIZED = _ok(Tokenized)
DETOKENIZED = _ok(Detokenized)
TOKENIZER = _ok(TokenizerInfo)
RESET = _ok(Reset)
VERSION = _ok(Version)
HEALTH: Responses = {**_ok(Health), 503: {"model": Health, "description": "No engine."}}
METRICS: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
