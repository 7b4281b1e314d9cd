"""How models write a call of a tool: the conventions of chat templates, as data.

Invariant: what a form's grammar can write (`begin`, `head`, `tail`, `between`, `end`), its reader
understands (`openers`, `starts`, `fillers`, `call`); a test draws such texts.

A form's calls stand in a region, between `begin` and `end`, one or several of them. Models write
JSON as templates show it to them, with a space after a comma and a colon.
"""

import re
from dataclasses import dataclass

# Of a JSON call up to its arguments. Llama says parameters, everybody else arguments.
JSON_CALL = re.compile(
    r'\{\s*"name"\s*:\s*"(?P<name>[^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
JSON_HEAD = '{"name": "NAME", "arguments": '
PLAMO = "<|plamo:{}:plamo|>"


@dataclass(frozen=True)
class ToolForm:
    """One convention."""

    name: str
    signs: tuple[str, ...]  # a template that has one of these texts …
    not_signs: tuple[str, ...] = ()  # … and none of these shows its model this form
    # Writing.
    begin: str = ""
    head: str = JSON_HEAD  # of one call, up to its arguments; NAME stands for the function's
    tail: str = "}"
    between: str | None = None  # the calls of a region; None: it has one
    end: str = ""
    joint: str | None = None  # between regions; None: there is one
    # Reading.
    openers: tuple[str, ...] = ()  # a region begins
    starts: str = ""  # so does, where a text begins, one of these characters
    fillers: tuple[str, ...] = ()  # around calls; they are no text
    call: re.Pattern[str] = JSON_CALL
    sign: str = "{"  # where `call` may match
    in_object: bool = True  # the arguments are a member of an object that goes on after them
    id_length: int | None = None  # of a call's id, where templates insist

    def is_shown_by(self, template: str) -> bool:
        return any(sign in template for sign in self.signs) and not any(
            sign in template for sign in self.not_signs
        )


HERMES = ToolForm(
    name="hermes",  # Qwen 2.5 and 3 too
    signs=("<tool_call>",),
    not_signs=("<function=", "<arg_key>"),  # the same tag around other things than JSON
    begin="<tool_call>\n",
    end="\n</tool_call>",
    joint="\n",
    openers=("<tool_call>",),
    fillers=("</tool_call>",),
)
MISTRAL = ToolForm(
    name="mistral",
    signs=("[TOOL_CALLS]",),
    not_signs=("[ARGS]",),  # its later form
    begin="[TOOL_CALLS][",
    between=", ",
    end="]",
    openers=("[TOOL_CALLS]",),
    fillers=("[", ",", "]"),
    id_length=9,
)
LLAMA3_JSON = ToolForm(
    name="llama3_json",
    signs=("<|python_tag|>",),
    head='{"name": "NAME", "parameters": ',
    between="; ",
    openers=("<|python_tag|>",),
    starts="{",
    fillers=(";",),
)
PLAMO3 = ToolForm(
    name="plamo3",
    signs=(PLAMO.format("begin_tool_request"),),
    begin=PLAMO.format("begin_tool_requests"),
    head=PLAMO.format("begin_tool_request")
    + f"{PLAMO.format('begin_tool_name')}NAME{PLAMO.format('end_tool_name')}"
    + PLAMO.format("begin_tool_arguments")
    + "<|plamo:constrain|>json<|plamo:msg|>",
    tail=PLAMO.format("end_tool_arguments") + PLAMO.format("end_tool_request"),
    between="",
    end=PLAMO.format("end_tool_requests"),
    openers=(PLAMO.format("begin_tool_requests"), PLAMO.format("begin_tool_request")),
    fillers=tuple(
        PLAMO.format(name)
        for name in (
            "begin_tool_requests",
            "end_tool_arguments",
            "end_tool_request",
            "end_tool_requests",
        )
    ),
    call=re.compile(
        r"<\|plamo:begin_tool_request:plamo\|>\s*"
        r"<\|plamo:begin_tool_name:plamo\|>\s*(?P<name>[^<]*?)\s*<\|plamo:end_tool_name:plamo\|>\s*"
        r"<\|plamo:begin_tool_arguments:plamo\|>"
        # These two are control tokens, and the text may come without them.
        r"(?:<\|plamo:constrain\|>)?(?:json)?(?:<\|plamo:msg\|>)?\s*(?=\{)"
    ),
    sign=PLAMO.format("begin_tool_request"),
    in_object=False,
)
# For templates whose form is not known: a list in JSON, which a grammar can insist on.
JSON = ToolForm(
    name="json",
    signs=(),
    begin="[",
    between=", ",
    end="]",
    starts="[{",
    fillers=("[", ",", "]"),
)
FORMS = {form.name: form for form in (HERMES, MISTRAL, LLAMA3_JSON, PLAMO3, JSON)}


def form_shown_by(template: str) -> ToolForm | None:
    """The form that a template's text shows to its model."""
    shown = (form for form in (PLAMO3, MISTRAL, HERMES, LLAMA3_JSON) if form.is_shown_by(template))
    return next(shown, None)
