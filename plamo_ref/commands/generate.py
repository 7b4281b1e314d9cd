"""Continue a text.

Invariant: stdout has the text and nothing else; what is said about it goes to stderr.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from plamo_ref.commands import _options as options

if TYPE_CHECKING:
    from plamo_ref.reference import Piece
    from plamo_ref.sampling import SamplingParams
    from plamo_ref.tokenizer import Plamo2Tokenizer


@dataclass(frozen=True)
class Generator:
    """A loaded model: its tokenizer, and a stream of pieces for prompt ids and parameters."""

    tokenizer: "Plamo2Tokenizer"
    stream: "Callable[[Sequence[int], SamplingParams], Iterator[Piece]]"


def open_generator(model: str, revision: str | None, offline: bool, dtype: str) -> Generator:
    """The one place that decides what generates: the reference."""
    from plamo_ref.checkpoint import Checkpoint
    from plamo_ref.hub import find
    from plamo_ref.reference import Plamo2Reference, generate_text
    from plamo_ref.tokenizer import Plamo2Tokenizer

    folder = find(model, revision=revision, offline=offline)
    stop_ids = Checkpoint.open(folder).stop_token_ids
    tokenizer = Plamo2Tokenizer.from_folder(folder)
    reference = Plamo2Reference.from_pretrained(folder, options.torch_dtype(dtype))
    return Generator(
        tokenizer, lambda ids, params: generate_text(reference, tokenizer, ids, params, stop_ids)
    )


@click.command()
@options.model_options
@click.option("--prompt", required=True, metavar="TEXT", help="The text; - reads it from stdin.")
@options.sampling_options
@options.dtype_option("float32", "What to compute in.")
@click.option("--echo", is_flag=True, help="Print the prompt before its continuation.")
@click.option("--stats", is_flag=True, help="Print token counts and speeds on stderr.")
def generate(
    model: str,
    revision: str | None,
    offline: bool,
    prompt: str,
    dtype: str,
    echo: bool,
    stats: bool,
    **sampling: Any,
) -> None:
    """Continue a text with a model, printing it as it comes."""
    text = options.read_prompt(prompt)
    params = options.sampling_params(sampling)
    started = time.perf_counter()
    generator = open_generator(model, revision, offline, dtype)
    prompt_ids = generator.tokenizer.encode(text)
    loaded = time.perf_counter()
    if echo:
        _put(text)
    arrivals, finish = [], None
    for piece in generator.stream(prompt_ids, params):
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
