"""Messages as clients send them, and as chat templates expect them.

Invariant: a template sees a message's role, one text as its content, and of the rest what was
given.
"""

import json
from collections.abc import Mapping
from typing import Any

from plamo_ref.server.openai.schemas import ChatMessage
from plamo_ref.server.tools.schemas import ToolCall


def for_template(message: ChatMessage) -> dict[str, Any]:
    """A message as templates expect it."""
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    plain: dict[str, Any] = {"role": message.role, "content": content or ""}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_calls:
        plain["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    return plain


def _call(call: ToolCall) -> Mapping[str, Any]:
    """Templates write the arguments as JSON, so that they want the object; what is none (a model
    has broken off, say) they get as it is."""
    arguments: Any = call.function.arguments
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        parsed = None
    if isinstance(parsed, dict):
        arguments = parsed
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}
