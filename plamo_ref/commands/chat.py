"""Talk with a model in the terminal.

Invariant: stdout has the model's words and nothing else, so that a conversation can be piped; an
interrupted answer stays in the conversation as far as it came.
"""

import sys
from typing import TYPE_CHECKING, Any

import click

from plamo_ref.commands import _options as options
from plamo_ref.commands._engine_options import ONE_REQUEST, engine_options

if TYPE_CHECKING:
    from plamo_ref.chat.templates import ChatTemplate
    from plamo_ref.engine.llm import LLM
    from plamo_ref.sampling import SamplingParams

Messages = list[dict[str, str]]
HELP = "/reset forgets the conversation, /quit or Ctrl-D ends it, Ctrl-C stops an answer."


@click.command()
@options.model_options
@options.sampling_options
@engine_options(*ONE_REQUEST)
@click.option(
    "--chat-template",
    metavar="NAME|FILE",
    help="plain, translate, or a Jinja file; default: the checkpoint's own.",
)
@click.option("--system", metavar="TEXT", help="A first message with the role system.")
def chat(
    model: str,
    revision: str | None,
    offline: bool,
    chat_template: str | None,
    system: str | None,
    **given: Any,
) -> None:
    """Talk with a model in the terminal; each line of input is a message."""
    from plamo_ref.chat.templates import load_template
    from plamo_ref.engine.llm import LLM
    from plamo_ref.intake.hub import find

    engine = {name: given.pop(name) for name in ONE_REQUEST}
    params = options.sampling_params(given)
    folder = find(model, revision=revision, offline=offline)
    llm = LLM(model, revision=revision, offline=offline, **engine)
    template = load_template(folder, chat_template, llm.tokenizer)
    if template is None:
        raise click.UsageError(
            f"{model} is a base model without a chat template; give --chat-template, "
            "for instance plain"
        )
    opening: Messages = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    if sys.stdin.isatty():
        click.echo(HELP, err=True)
    while (line := _read_line()) is not None:
        if line == "/quit":
            return
        if line == "/reset":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            answer = _answer(llm, template, messages, params, len(opening))
            messages.append({"role": "assistant", "content": answer})


def _read_line() -> str | None:
    """The next line of input, or None at its end."""
    if sys.stdin.isatty():
        click.echo("> ", nl=False, err=True)
    line = sys.stdin.readline()
    return line.strip() if line else None


def _answer(
    llm: "LLM", template: "ChatTemplate", messages: Messages, params: "SamplingParams", kept: int
) -> str:
    """Print the model's answer as it comes, and return it; the oldest turns go if room is short."""
    ids = _prompt_ids(llm, template, messages)
    wanted = params.max_tokens or 1
    while len(ids) + wanted > llm.core.max_model_len and len(messages) > kept + 1:
        del messages[kept : kept + 2]
        ids = _prompt_ids(llm, template, messages)
    params = template.with_stops(params, llm.tokenizer)
    answer = ""
    try:
        for piece in llm.stream(ids, params):
            text = piece.text if answer else piece.text.lstrip()
            answer += text
            click.echo(text, nl=False)
    except KeyboardInterrupt:
        click.echo(" …", nl=False, err=True)
    click.echo()
    return answer.strip()


def _prompt_ids(llm: "LLM", template: "ChatTemplate", messages: Messages) -> list[int]:
    text = template.render(messages, {})
    return llm.tokenizer.encode(text, template.add_bos(text))
