"""A request to /v1/responses as the chat that it is.

Invariant: everything that a response depends on is in the chat; what the chat refuses is refused,
under the name that the field has here.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from plamo_ref.server.openai.responses_schemas import (
    CallItem,
    CallOutputItem,
    Content,
    Item,
    ResponseNamedTool,
    ResponsesRequest,
    ResponseTool,
    SchemaFormat,
)
from plamo_ref.server.openai.schemas import ChatMessage, ChatRequest, Sampling
from plamo_ref.server.tools.schemas import CalledFunction, Function, ToolCall

# Fields of `Sampling` that are not the chat's business.
HERE = {"stream", "stream_options"}
NAMES = {  # the chat's → here
    "messages": "input",
    "prompt": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text",
}


def as_chat(request: ResponsesRequest) -> ChatRequest:
    """The chat request that asks for the same.

    Raises:
        ValidationError: the chat has a limit that was not known here.
    """
    fields = {name: getattr(request, name) for name in Sampling.model_fields.keys() - HERE}
    with_logprobs = bool(request.top_logprobs) or "message.output_text.logprobs" in (
        request.include or []
    )
    fields |= {
        "messages": messages(request),
        "max_completion_tokens": request.max_output_tokens,
        "logprobs": with_logprobs,
        "top_logprobs": request.top_logprobs,
        "response_format": _response_format(request),
        "tools": None if request.tools is None else list(map(_tool, request.tools)),
        "tool_choice": _tool_choice(request),
        "parallel_tool_calls": request.parallel_tool_calls,
        "chat_template_kwargs": request.chat_template_kwargs,
    }
    return ChatRequest.model_validate(fields)


def messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    """The instructions, then the conversation. What an assistant says and then calls is one turn,
    as it was when it came from here."""
    found: list[ChatMessage] = []
    if request.instructions is not None:
        found.append(ChatMessage(role="system", content=request.instructions))
    if isinstance(request.input, str):
        found.append(ChatMessage(role="user", content=request.input))
        return _plain(found)
    for item in request.input:
        if isinstance(item, CallItem) and found and found[-1].role == "assistant":
            found[-1].tool_calls = [*(found[-1].tool_calls or []), _call(item)]
        else:
            found.append(_message(item))
    return _plain(found)


def _plain(found: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    return [message.model_dump(exclude_none=True) for message in found]


def _message(item: Item) -> ChatMessage:
    if isinstance(item, CallItem):
        return ChatMessage(role="assistant", tool_calls=[_call(item)])
    if isinstance(item, CallOutputItem):
        text = "".join(_texts(item.output))
        return ChatMessage(role="tool", content=text, tool_call_id=item.call_id)
    return ChatMessage(role=item.role, content="".join(_texts(item.content)))


def _texts(content: Content) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    else:
        yield from (part.text for part in content)


def _call(item: CallItem) -> ToolCall:
    return ToolCall(
        id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments)
    )


def _tool(tool: ResponseTool) -> dict[str, Any]:
    function = {name: getattr(tool, name) for name in Function.model_fields}
    return {"type": "function", "function": function}


def _tool_choice(request: ResponsesRequest) -> Any:
    choice = request.tool_choice
    if isinstance(choice, ResponseNamedTool):
        return {"type": "function", "function": {"name": choice.name}}
    return choice


def _response_format(request: ResponsesRequest) -> Any:
    form = None if request.text is None else request.text.format
    if form is None:
        return None
    if not isinstance(form, SchemaFormat):
        return {"type": form.type}
    schema = {"name": form.name, "schema": form.schema_, "strict": form.strict}
    return {"type": "json_schema", "json_schema": schema}
