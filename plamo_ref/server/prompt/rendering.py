"""From a conversation's fields to its prompt: what the template is told, and whether it listens.

Invariant: what a client says is in the prompt, or refused by name: a template drops what it does
not know without a word.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from plamo_ref.chat.templates import ChatTemplate, TemplateRefusesError
from plamo_ref.server.errors import ApiError, bad, conflict
from plamo_ref.server.openai.schemas import Conversation

Messages = Sequence[Mapping[str, Any]]
Writer = Callable[[Messages], str]

TEMPLATE_REFUSES = "template_refuses"  # the code of such an error

# Names that are not the client's to give, and the field that says the same if there is one.
TAKEN = ("messages", "add_generation_prompt", "continue_final_message", "documents", "tools")
EVERYBODY = ("user", "assistant")  # every template knows them
MAX_ROLES = 16  # in one conversation


def render(
    template: ChatTemplate,
    messages: Messages,
    asked: Conversation,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The prompt of `messages`, which are those of `asked` in plain form, with these tools.

    Raises:
        ApiError: the template refuses them, or would drop something.
    """
    continued = bool(asked.continue_final_message)
    opens = not continued if asked.add_generation_prompt is None else asked.add_generation_prompt
    if continued and opens:
        message = "a message that is continued has no next one: add_generation_prompt is false then"
        raise conflict(message, "continue_final_message")
    if not opens and "add_generation_prompt" not in template.variables:
        field = "continue_final_message" if continued else "add_generation_prompt"
        raise _deaf(f"{field}: the chat template always begins the assistant's turn", field)
    extra = _names(template, asked)
    if asked.documents:
        extra["documents"] = _known(template, "documents", asked.documents)
    write = partial(template.render, extra=extra, tools=tools, add_generation_prompt=opens)
    try:
        return _continued(write, messages) if continued else _checked(write, messages)
    except TemplateRefusesError as error:
        raise _deaf(str(error), "messages") from None


def _deaf(message: str, field: str) -> ApiError:
    return bad(message, field, TEMPLATE_REFUSES)


def _names(template: ChatTemplate, asked: Conversation) -> dict[str, Any]:
    """What the template is told besides the messages. A switch that it does not have is off."""
    extra = dict(asked.chat_template_kwargs or {})
    for name, value in extra.items():
        if name in TAKEN or name in template.names:
            raise _deaf(
                f"chat_template_kwargs: {name[:64]!r} is not yours to set", "chat_template_kwargs"
            )
        if name not in template.variables and value is not None and value is not False:
            known = sorted(template.variables - {*TAKEN, *template.names, "raise_exception"})
            listed = ", ".join(known) or "no names besides the messages"
            raise _deaf(
                f"chat_template_kwargs: the chat template does not know {name[:64]!r}; "
                f"it knows {listed}",
                "chat_template_kwargs",
            )
    if asked.reasoning_effort not in (None, "none"):
        extra["reasoning_effort"] = _known(template, "reasoning_effort", asked.reasoning_effort)
    return extra


def _known(template: ChatTemplate, name: str, value: Any) -> Any:
    if name not in template.variables:
        raise _deaf(f"{name}: the chat template does not know it; leave it out", name)
    return value


def _continued(write: Writer, messages: Messages) -> str:
    """The prompt up to the end of the last message's content, without what the template adds."""
    mark = uuid.uuid4().hex
    *before, last = messages
    text = _checked(write, [*before, {**last, "content": last["content"] + mark}])
    begun, found, _ = text.rpartition(mark)
    if not found:
        message = "continue_final_message: the chat template does not end with the last message"
        raise _deaf(message, "continue_final_message")
    return begun


def _checked(write: Writer, messages: Messages) -> str:
    """The prompt. A template that writes the same without the messages of a role does not know the
    role."""
    text = write(messages)
    roles = list(dict.fromkeys(m["role"] for m in messages if m["content"]))
    if len(roles) > MAX_ROLES:  # for each the template is asked once more
        raise bad(f"messages: there are {len(roles)} roles, at most {MAX_ROLES} may be", "messages")
    for role in roles:
        if role in EVERYBODY:
            continue
        try:
            same = write([message for message in messages if message["role"] != role]) == text
        except TemplateRefusesError:  # it needs them, so it knows them
            continue
        if same:
            raise _deaf(
                f"messages: the chat template writes nothing of the role {role[:64]!r}; "
                "give another, such as user",
                "messages",
            )
    return text
