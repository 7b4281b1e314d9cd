"""What clients may send to /v1/responses: what OpenAI's has for a text model without a memory.

Invariant: as in `schemas.py`. `store` changes nothing in an answer, which says that it is not
stored; whatever would need something that is stored is refused by name.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from plamo_ref.server.edge import elsewhere
from plamo_ref.server.edge.strict import Strict
from plamo_ref.server.openai.schemas import Count, Positive, Sampling
from plamo_ref.server.tools.schemas import MAX_TOOLS, Function, FunctionNamed


class InputText(Strict):
    """A part of a message: the user's, or the assistant's own."""

    ELSEWHERE = elsewhere.ITEM_PART
    type: Literal["input_text", "output_text"]
    text: str


Content = str | list[InputText]


class InputMessage(Strict):
    """A turn of the conversation."""

    ELSEWHERE = elsewhere.ITEM
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class CallItem(Strict):
    """A call that the assistant made."""

    ELSEWHERE = elsewhere.ITEM
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutputItem(Strict):
    """What came of a call."""

    ELSEWHERE = elsewhere.ITEM
    type: Literal["function_call_output"]
    call_id: str
    output: Content


Item = InputMessage | CallItem | CallOutputItem


class ResponseTool(Function):
    """A function that may be called."""

    type: Literal["function"]


class ResponseNamedTool(FunctionNamed):
    """The function to be called."""

    type: Literal["function"]


class PlainFormat(Strict):
    """Any text, or any JSON object."""

    ELSEWHERE = elsewhere.PLAIN_FORMAT
    type: Literal["text", "json_object"]


class SchemaFormat(Strict):
    """A JSON text that follows a schema."""

    ELSEWHERE = elsewhere.JSON_SCHEMA
    type: Literal["json_schema"]
    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class TextConfig(Strict):
    """How the text of the answer shall be."""

    ELSEWHERE = elsewhere.TEXT
    format: PlainFormat | SchemaFormat | None = Field(None, discriminator="type")


# There is no reasoning here that could be left out.
Included = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class ResponsesRequest(Sampling):
    """POST /v1/responses"""

    ELSEWHERE = elsewhere.RESPONSE
    input: str | Annotated[list[Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Positive | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    store: bool | None = None
    text: TextConfig | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseNamedTool | None = None
    top_logprobs: Annotated[Count, Field(le=20)] | None = None
    include: list[Included] | None = None
    truncation: Literal["disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
