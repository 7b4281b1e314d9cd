"""What clients say of tools: functions that the model may call, which of them, and earlier calls.

Invariant: a function has a name that needs no escape in any form; its parameters are a JSON schema,
which is checked where it is used.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from plamo_ref.server.edge import elsewhere
from plamo_ref.server.edge.strict import Strict

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.\-]{1,128}$")]


class Function(Strict):
    """What the model may call."""

    ELSEWHERE = elsewhere.FUNCTION
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None  # a JSON schema; none: it has no parameters
    strict: bool | None = None  # calls follow the schema, also those that nobody asked for


class Tool(Strict):
    """A function, wrapped as the API wraps it."""

    type: Literal["function"]
    function: Function


MAX_TOOLS = 128  # as OpenAI's
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]


class FunctionNamed(Strict):
    """A function's name, where only that is given."""

    name: FunctionName


class NamedTool(Strict):
    """The tool to be called."""

    type: Literal["function"]
    function: FunctionNamed


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class CalledFunction(Strict):
    """A function that was called."""

    name: str
    arguments: str  # JSON


class ToolCall(Strict):
    """A call that an assistant made earlier."""

    ELSEWHERE = elsewhere.TOOL_CALL
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
