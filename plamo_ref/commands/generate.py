"""Continue a text.

Invariant: stdout has the text and nothing else; what is said about it goes to stderr.
"""

import time
from collections.abc import Sequence
from typing import Any

import click

from plamo_ref.commands import _options as options
from plamo_ref.commands._engine_options import ONE_REQUEST, engine_options


@click.command()
@options.model_options
@click.option("--prompt", required=True, metavar="TEXT", help="The text; - reads it from stdin.")
@options.sampling_options
@engine_options(*ONE_REQUEST)
@click.option("--echo", is_flag=True, help="Print the prompt before its continuation.")
@click.option("--stats", is_flag=True, help="Print token counts and speeds on stderr.")
def generate(
    model: str,
    revision: str | None,
    offline: bool,
    prompt: str,
    echo: bool,
    stats: bool,
    **given: Any,
) -> None:
    """Continue a text with a model, printing it as it comes."""
    from plamo_ref.engine.llm import LLM

    text = options.read_prompt(prompt)
    engine = {name: given.pop(name) for name in ONE_REQUEST}
    params = options.sampling_params(given)
    started = time.perf_counter()
    llm = LLM(model, revision=revision, offline=offline, **engine)
    prompt_ids = llm.tokenizer.encode(text)
    loaded = time.perf_counter()
    if echo:
        _put(text)
    arrivals, finish = [], None
    for piece in llm.stream(prompt_ids, params):
        arrivals.append(time.perf_counter())
        finish = piece.finish_reason
        _put(piece.text)
    _put("\n")
    if stats:
        click.echo(f"loaded in {loaded - started:.2f} s", err=True)
        click.echo(speeds(len(prompt_ids), loaded, arrivals), err=True)
        click.echo(f"finished because of: {finish}", err=True)


def speeds(prompt_tokens: int, start: float, arrivals: Sequence[float]) -> str:
    """Two lines on prefill (up to the first token) and decode (all later ones).

    Args:
        start: when the prompt was handed over, in seconds.
        arrivals: when each generated token arrived, in seconds.
    """
    prefill = arrivals[0] - start
    lines = f"prefill: {prompt_tokens} tokens in {prefill:.3f} s, {prompt_tokens / prefill:.1f}/s"
    decode, later = arrivals[-1] - arrivals[0], len(arrivals) - 1
    speed = f", {later / decode:.1f}/s" if later else ""
    return f"{lines}\ndecode: {later} tokens in {decode:.3f} s{speed}"


def _put(text: str) -> None:
    click.echo(text, nl=False)  # flushes: text is read while it is written
