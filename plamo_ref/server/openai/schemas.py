"""What clients may send, in the words of OpenAI's API, and vLLM's where OpenAI has none.

Invariant: types are strict, "1" is no number; a field that is declared here has its effect, every
other is refused by name or, as `elsewhere.py` says of it, changes nothing. What a field may be on
its own is said here, or, where it depends on the model and the settings, in `document.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from plamo_ref.server.edge import elsewhere
from plamo_ref.server.edge.strict import Strict
from plamo_ref.server.tools.schemas import ToolCall, ToolChoice, Tools

SAFE = 2**53 - 1  # up to it every reader of JSON sees the same integers
SOME_IDS = 1 << 17  # tokens that a request names one by one; no vocabulary has more


def _whole(value: Any) -> Any:
    """To JSON, and to a JSON schema, 5.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _all_whole(value: Any) -> Any:
    """Of a list, whose prompts can be long."""
    if isinstance(value, list) and float in map(type, value):
        return [_whole(item) for item in value]
    return value


def _first_bias(value: Any) -> Any:
    """Pydantic's maps go on after the first wrong value, its lists do not."""
    if isinstance(value, dict):
        for token, bias in value.items():
            if type(bias) not in (int, float) or not -100 <= bias <= 100:
                raise ValueError(f"{token}: Input should be a number from -100 to 100")
    return value


Count = Annotated[int, Field(ge=0, le=SAFE), BeforeValidator(_whole)]
Positive = Annotated[int, Field(ge=1, le=SAFE), BeforeValidator(_whole)]
TopK = Annotated[int, Field(ge=-1, le=SAFE), BeforeValidator(_whole)]
Integer = Annotated[int, BeforeValidator(_whole)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[str, Bias], Field(max_length=SOME_IDS), BeforeValidator(_first_bias)]
TokenId = Annotated[int, Field(ge=0, le=SAFE)]
RequestId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:@/+=~-]{1,128}$")]
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


class StreamOptions(Strict):
    """What a stream has besides its text."""

    ELSEWHERE = elsewhere.STREAM_OPTIONS
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: with every chunk

    @property
    def usage(self) -> bool:
        """Whether the stream ends with its usage."""
        return bool(
            self.continuous_usage_stats if self.include_usage is None else self.include_usage
        )


class JsonSchema(Strict):
    """The schema of a response format."""

    ELSEWHERE = elsewhere.JSON_SCHEMA
    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class PlainFormat(Strict):
    """Any text, or any JSON object."""

    ELSEWHERE = elsewhere.PLAIN_FORMAT
    type: Literal["text", "json_object"]


class SchemaFormat(Strict):
    """A JSON text that follows a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


class StructuredOutputs(Strict):
    """vLLM's newer words for guided decoding; exactly one of them is given."""

    ELSEWHERE = elsewhere.STRUCTURED_OUTPUTS
    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[Text], Field(min_length=1)] | None = None
    grammar: str | None = None


class Sampling(Strict):
    """What completions and chats have in common."""

    model: str | None = None  # the one that is served
    frequency_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Positive | None = None  # the newer name
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
    spaces_between_special_tokens: bool | None = None
    stop_token_ids: Annotated[AnyIds, Field(max_length=SOME_IDS)] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[Text], Field(min_length=1)] | None = None
    guided_grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None
    prompt_logprobs: Count | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None  # in log probabilities: "token_id:7"
    request_id: RequestId | None = None  # the header X-Request-Id decides
    cache_salt: Text | None = None  # only requests with the same one share what was computed


class CompletionRequest(Sampling):
    """POST /v1/completions"""

    ELSEWHERE = elsewhere.COMPLETION
    prompt: Prompt
    best_of: Count | None = None
    echo: bool | None = None
    logprobs: Count | None = None
    add_special_tokens: bool | None = None  # vLLM's: begin with BOS where the model does


class TextPart(Strict):
    """A part of a message's content."""

    ELSEWHERE = elsewhere.PART
    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, data: Any) -> Any:
        """Images, sound and files are what people try."""
        if isinstance(data, dict) and data.get("type", "text") != "text":
            said = {"said": "the model reads text only", "field": "type"}
            raise PydanticCustomError("unsupported_parameter", "{said}", said)
        return data


class ChatMessage(Strict):
    """One turn of a conversation."""

    ELSEWHERE = elsewhere.MESSAGE
    role: Text  # whose, as the template knows it
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None  # of an assistant
    tool_call_id: str | None = None  # of a tool's message


class Conversation(Strict):
    """What a chat template makes a prompt of; its words beyond `messages` are vLLM's."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    add_generation_prompt: bool | None = None  # end where the assistant begins to speak
    continue_final_message: bool | None = None  # end within the last message
    add_special_tokens: bool | None = None  # begin with BOS where the model does
    chat_template_kwargs: dict[str, Any] | None = None  # more names for the template
    documents: list[dict[str, Any]] | None = None  # for a template that knows them
    reasoning_effort: str | None = None  # likewise


class ChatRequest(Conversation, Sampling):
    """POST /v1/chat/completions"""

    ELSEWHERE = elsewhere.CHAT
    max_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None


class TokenizeRequest(Conversation):
    """POST /tokenize: of a text, or of a conversation as the model would see it."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None  # type: ignore[assignment]
    tools: Tools | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    """POST /detokenize"""

    model: str | None = None
    tokens: AnyIds
