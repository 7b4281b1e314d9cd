"""What a chat asks of its tools, decided before anything runs.

Invariant: `required` and a named function are enforced by a grammar, and so is `strict`; `none`,
and no tools at all, mean that nobody looks for calls. What a template cannot show, tools or earlier
calls, is refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plamo_ref.chat.template_tools import TemplateTools
from plamo_ref.chat.tool_forms import FORMS, JSON, ToolForm
from plamo_ref.sampling import GuidedParams, SamplingParams
from plamo_ref.server.config import ServerConfig
from plamo_ref.server.errors import ApiError, bad, conflict
from plamo_ref.server.openai.params import guided
from plamo_ref.server.openai.schemas import ChatMessage, ChatRequest
from plamo_ref.server.tools import grammar as tool_grammar
from plamo_ref.server.tools.reader import ToolReader
from plamo_ref.server.tools.schemas import Function, NamedTool, Tool
from plamo_ref.text.tokenizer import Plamo2Tokenizer

CURE = "start the server with a --chat-template that knows them"
CODE = "unsupported_tools"


@dataclass(frozen=True)
class ToolPlan:
    """The tools that the model sees, and the calls that it may, or must, make.

    Attributes:
        shown: in the prompt, as templates expect them.
        callable: those that may be called.
        grammar: of the calls, where they are enforced.
    """

    form: ToolForm
    shown: Sequence[Mapping[str, Any]]
    callable: Sequence[Function]
    grammar: GuidedParams | None

    def reader(self) -> ToolReader:
        return ToolReader(self.form, [function.name for function in self.callable])

    def with_marks(self, params: SamplingParams, tokenizer: Plamo2Tokenizer) -> SamplingParams:
        """Where control tokens mark the calls, the text must have them."""
        ids = {tokenizer.id_of(mark) for mark in (*self.form.openers, *self.form.fillers)}
        if ids & tokenizer.control_ids:
            return replace(params, skip_special_tokens=False)
        return params


def plan_tools(
    request: ChatRequest, template: TemplateTools, config: ServerConfig
) -> ToolPlan | None:
    """None: there is no call to look for.

    Raises:
        ApiError: a tool that cannot be shown, called, or enforced.
    """
    choice = request.tool_choice
    if not request.tools:
        if choice not in (None, "none", "auto"):
            raise conflict("tool_choice asks for a call, and there are no tools", "tool_choice")
        return None
    if choice == "none":
        return None
    shown = for_template(request.tools, template)
    functions = [tool.function for tool in request.tools]
    if len({function.name for function in functions}) < len(functions):
        raise conflict("tools: two have the same name", "tools")
    form = template.form if config.tool_call_parser is None else FORMS[config.tool_call_parser]
    if form is None and choice in (None, "auto"):
        message = "how this chat template's model writes calls is not known: start the server with "
        raise bad(f"{message}--tool-call-parser, or ask for a call", "tool_choice", CODE)
    form = form or JSON
    callable = _callable(functions, choice)
    try:
        grammar = _grammar(request, form, callable)
    except RecursionError:
        message = "tools: the parameters are nested too deeply"
        raise bad(message, "tools", "unsupported_grammar") from None
    return ToolPlan(form, shown, callable, grammar)


def for_template(tools: Sequence[Tool], template: TemplateTools) -> list[dict[str, Any]]:
    """Tools as templates expect them.

    Raises:
        ApiError: the template does not show them.
    """
    if not template.shows_tools:
        raise bad(f"this model's chat template does not know tools: {CURE}", "tools", CODE)
    return [{"type": "function", "function": _plain(tool.function)} for tool in tools]


def check_calls(messages: Sequence[ChatMessage], template: TemplateTools) -> None:
    """Whether the template shows the calls that were made earlier.

    Raises:
        ApiError: it does not.
    """
    if not template.shows_calls and any(message.tool_calls for message in messages):
        message = f"this model's chat template does not know tool_calls: {CURE}"
        raise bad(message, "messages", CODE)


def refused_grammar(error: Exception) -> ApiError:
    """What a client is told about a grammar that it has not written."""
    return bad(f"tools: a schema that cannot be followed: {error}", "tools", "unsupported_grammar")


def _callable(functions: Sequence[Function], choice: Any) -> Sequence[Function]:
    if not isinstance(choice, NamedTool):
        return functions
    named = [function for function in functions if function.name == choice.function.name]
    if not named:
        message = f"tool_choice names {choice.function.name!r}, which is none of the tools"
        raise conflict(message, "tool_choice")
    return named


def _grammar(
    request: ChatRequest, form: ToolForm, functions: Sequence[Function]
) -> GuidedParams | None:
    """The calls' grammar, or None: what the model writes is read as it comes."""
    parallel = request.parallel_tool_calls is not False
    must = request.tool_choice not in (None, "auto")
    answer = guided(request)
    strict = not parallel or any(function.strict for function in functions)
    if answer is not None and request.response_format is None and (must or strict):
        message = "a grammar for the answer cannot go with tools that are enforced, or strict"
        raise conflict(message, "tools")
    if must:
        parallel = parallel and not isinstance(request.tool_choice, NamedTool)
        lark = tool_grammar.forced(form, functions, parallel=parallel)
    elif answer is not None and request.response_format is not None:
        schema = answer.json if isinstance(answer.json, dict) else {"type": "object"}
        lark = tool_grammar.calls_or(form, functions, schema, parallel=parallel)
    elif strict:
        lark = tool_grammar.free(form, functions, parallel=parallel)
    else:
        return None
    return GuidedParams(grammar=lark)


def _plain(function: Function) -> dict[str, Any]:
    parts = {
        "name": function.name,
        "description": function.description,
        "parameters": function.parameters,
    }
    return {name: part for name, part in parts.items() if part is not None}
