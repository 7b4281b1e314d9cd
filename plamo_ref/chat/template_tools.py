"""What a chat template makes of tools, read from its source.

Invariant: a template that never looks at `tools`, or at a message's `tool_calls`, is known not to:
what a client says of them would be lost without a word.
"""

from dataclasses import dataclass

from jinja2 import Environment, nodes

from plamo_ref.chat.tool_forms import ToolForm, form_shown_by


@dataclass(frozen=True)
class TemplateTools:
    """Whether a template shows tools, and earlier calls, and in which form it asks for them."""

    shows_tools: bool = False
    shows_calls: bool = False
    form: ToolForm | None = None  # None: none that is known

    @classmethod
    def of(cls, source: str, environment: Environment) -> "TemplateTools":
        """Of a template's source, which can be parsed."""
        tree = environment.parse(source)
        names = {node.name for node in tree.find_all(nodes.Name) if node.ctx == "load"}
        attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
        texts = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        return cls(
            shows_tools="tools" in names,
            shows_calls="tool_calls" in attributes | texts,  # message.tool_calls, or by item
            form=form_shown_by(source),
        )
