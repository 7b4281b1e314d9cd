"""What clients may send, in the words of OpenAI's API, and vLLM's where OpenAI has none.

Invariant: types are strict, "1" is no number; fields that we do not know, and those that change
nothing here (user, store, metadata …), are let through; fields that would change the answer and
that we cannot honour are refused by name, in `params.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

INT64 = 2**63 - 1
Count = Annotated[int, Field(ge=0, le=INT64)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=INT64)]
# A token id is an integer; text and ids are told apart by their type.
Prompt = str | list[TokenId] | list[str] | list[list[TokenId]]


class Strict(BaseModel):
    """A part of a request."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class StreamOptions(Strict):
    """What a stream has besides its text."""

    include_usage: bool | None = None


class JsonSchema(Strict):
    """The schema of a response format."""

    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """What the output has to look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Sampling(Strict):
    """What completions and chats have in common."""

    model: str
    frequency_penalty: Finite | None = None
    logit_bias: dict[str, Finite] | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=INT64)] | None = None
    presence_penalty: Finite | None = None
    response_format: ResponseFormat | None = None
    seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Finite | None = None
    top_p: Finite | None = None
    # vLLM's
    top_k: Annotated[int, Field(ge=-1, le=INT64)] | None = None
    min_p: Finite | None = None
    min_tokens: Count | None = None
    repetition_penalty: Finite | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


class CompletionRequest(Sampling):
    """POST /v1/completions"""

    prompt: Prompt
    best_of: Annotated[int, Field(ge=0, le=INT64)] | None = None
    echo: bool | None = None
    logprobs: Count | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None  # vLLM's: begin with BOS where the model does


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None
    name: str | None = None


class ChatRequest(Sampling):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: list[dict[str, Any]] | None = None
    functions: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # vLLM's: more names for the template


class TokenizeRequest(Strict):
    """POST /tokenize: of a text, or of a conversation as the model would see it."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    """POST /detokenize"""

    model: str | None = None
    tokens: list[TokenId]
