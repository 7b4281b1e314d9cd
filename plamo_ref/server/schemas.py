"""What clients may send, in the words of OpenAI's API, and vLLM's where OpenAI has none.

Invariant: types are strict, "1" is no number; fields that we do not know, and those that change
nothing here (user, store, metadata …), are let through; fields that would change the answer and
that we cannot honour are refused by name, in `params.py`. What a field may be on its own is said
here, or, where it depends on the model and the settings, in `document.py`.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from plamo_ref.server.tool_schemas import Strict, ToolCall, ToolChoice, Tools

SAFE = 2**53 - 1  # up to it every reader of JSON sees the same integers


def _whole(value: Any) -> Any:
    """To JSON, and to a JSON schema, 5.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _all_whole(value: Any) -> Any:
    """Of a list, whose prompts can be long."""
    if isinstance(value, list) and float in map(type, value):
        return [_whole(item) for item in value]
    return value


Count = Annotated[int, Field(ge=0, le=SAFE), BeforeValidator(_whole)]
Positive = Annotated[int, Field(ge=1, le=SAFE), BeforeValidator(_whole)]
TopK = Annotated[int, Field(ge=-1, le=SAFE), BeforeValidator(_whole)]
Integer = Annotated[int, BeforeValidator(_whole)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, le=SAFE)]
Text = Annotated[str, Field(min_length=1)]
AnyIds = Annotated[list[TokenId], BeforeValidator(_all_whole)]
Ids = Annotated[AnyIds, Field(min_length=1)]
# A token id is an integer; text and ids are told apart by their type.
Prompt = (
    str
    | Ids
    | Annotated[list[str], Field(min_length=1)]
    | Annotated[list[Ids], Field(min_length=1)]
)


def _refuse(value: Any) -> None:
    if value is not None:
        raise ValueError("not supported by this server; leave it out")


def _only(wanted: bool) -> Callable[[bool], bool]:
    """Of a switch that cannot be moved. (A Literal would take 0 for False, as Python does.)"""

    def check(value: bool) -> bool:
        if value is not wanted:
            raise ValueError(f"only {str(wanted).lower()} is supported by this server")
        return value

    return check


# What would change the answer and is not supported: null or nothing, and an empty list or text
# where clients send one. (`params.py` says of some why not.)
Unsupported = Annotated[None, BeforeValidator(_refuse)]
No = Annotated[bool, Field(json_schema_extra={"const": False}), AfterValidator(_only(False))]
Yes = Annotated[bool, Field(json_schema_extra={"const": True}), AfterValidator(_only(True))]
NoText = Annotated[str, Field(json_schema_extra={"maxLength": 0})]
NoList = Annotated[list[Any], Field(json_schema_extra={"maxItems": 0})]


class StreamOptions(Strict):
    """What a stream has besides its text."""

    include_usage: bool | None = None


class JsonSchema(Strict):
    """The schema of a response format."""

    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class PlainFormat(Strict):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(Strict):
    """A JSON text that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StructuredOutputs(Strict):
    """vLLM's newer words for guided decoding; exactly one of them is given."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[Text], Field(min_length=1)] | None = None
    grammar: str | None = None
    structural_tag: Unsupported = None
    whitespace_pattern: Unsupported = None  # JSON is compact


class Sampling(Strict):
    """What completions and chats have in common."""

    model: str
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    max_tokens: Count | None = None
    n: Positive | None = None
    presence_penalty: Penalty | None = None
    response_format: PlainFormat | SchemaFormat | None = Field(None, discriminator="type")
    seed: Integer | None = None  # of its last 64 bits
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    # vLLM's
    top_k: TopK | None = None
    min_p: Share | None = None
    min_tokens: Count | None = None
    repetition_penalty: Factor | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    stop_token_ids: AnyIds | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[Text], Field(min_length=1)] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: Unsupported = None
    structured_outputs: StructuredOutputs | None = None
    prompt_logprobs: Unsupported = None  # of a completion: echo and logprobs
    use_beam_search: No | None = None
    bad_words: NoList | None = None
    allowed_token_ids: Unsupported = None
    truncate_prompt_tokens: Unsupported = None
    logits_processors: Unsupported = None


class CompletionRequest(Sampling):
    """POST /v1/completions"""

    prompt: Prompt
    best_of: Count | None = None
    echo: bool | None = None
    logprobs: Count | None = None
    suffix: NoText | None = None
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
    tool_calls: list[ToolCall] | None = None  # of an assistant
    tool_call_id: str | None = None  # of a tool's message
    function_call: Unsupported = None  # older than tool_calls


class ChatRequest(Sampling):
    """POST /v1/chat/completions"""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: NoList | None = None  # older than tools
    function_call: Literal["none", "auto"] | None = None
    modalities: list[Literal["text"]] | None = None
    audio: Unsupported = None
    web_search_options: Unsupported = None
    chat_template: Unsupported = None  # that would run in this process; see --chat-template
    documents: NoList | None = None
    add_generation_prompt: Yes | None = None
    continue_final_message: No | None = None
    chat_template_kwargs: dict[str, Any] | None = None  # vLLM's: more names for the template


class TokenizeRequest(Strict):
    """POST /tokenize: of a text, or of a conversation as the model would see it."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    """POST /detokenize"""

    model: str | None = None
    tokens: AnyIds
