"""Translate a document.

Invariant: what is written is the document's beginning, translated, at any moment: pieces come in
order, and an interrupt loses those alone that are not ready. What is said about it goes to stderr.
"""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from plamo_ref.commands import _options as options
from plamo_ref.commands._engine_options import ONE_REQUEST, engine_options

if TYPE_CHECKING:
    from plamo_ref.translation import TranslatedPiece

MODEL = "pfnet/plamo-2-translate"
ENGINE = (
    *ONE_REQUEST,
    "state_dtype",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "gpu_memory_utilization",
    "memory_bytes",
)


@click.command()
@click.argument("file", type=click.File("rb"))
@partial(options.model_options, default=MODEL)
@click.option("--from", "source_lang", metavar="LANG", help='As in "English".')
@click.option("--to", "target_lang", metavar="LANG", help='As in "Japanese".')
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write there; default: standard output.",
)
@click.option(
    "--piece-tokens",
    type=click.IntRange(1),
    default=400,
    show_default=True,
    help="Tokens that are translated at once, at most.",
)
@click.option("--quiet", is_flag=True, help="No progress, no figures.")
@engine_options(*ENGINE)
@click.pass_context
def translate(
    context: click.Context,
    file: IO[bytes],
    model: str,
    revision: str | None,
    offline: bool,
    source_lang: str | None,
    target_lang: str | None,
    output: Path | None,
    piece_tokens: int,
    quiet: bool,
    **engine: Any,
) -> None:
    """Translate FILE (- is standard input), a text in UTF-8 of any length.

    It is cut into paragraphs, and long ones behind sentences; all are translated together and
    written in order. One that runs away is tried again in shorter pieces; what has no translation
    in the end stands as it was, is named, and makes the exit code 1.

    Without --from and --to the model finds out by itself, between English and Japanese.
    """
    from tqdm import tqdm

    from plamo_ref.engine.llm import LLM
    from plamo_ref.translation import Translator

    document = _read(file, output)
    llm = LLM(model, revision=revision, offline=offline, **engine)
    translator = Translator(llm, source_lang, target_lang, piece_tokens)
    count = len(translator.pieces(document)[1])
    started, done = time.perf_counter(), list["TranslatedPiece"]()
    with tqdm(total=count, desc="pieces", unit="piece", disable=quiet or None) as bar:
        for piece in _written(translator.stream(document), output):
            done.append(piece)
            bar.update(piece.source != "")
    if not quiet:
        click.echo(_figures(len(document), done, time.perf_counter() - started), err=True)
    failed = [part for piece in done for part in piece.untranslated]
    for part in failed:
        click.echo(f"not translated: {_shown(part)}", err=True)
    if failed:
        context.exit(1)


def _read(file: IO[bytes], output: Path | None) -> str:
    if output is not None and output.exists() and output.resolve() == Path(file.name).resolve():
        raise click.BadParameter(f"{output} is what is to be translated; name another file")
    try:
        return file.read().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{file.name} is not UTF-8: {error}") from None


def _written(
    pieces: Iterator["TranslatedPiece"], output: Path | None
) -> Iterator["TranslatedPiece"]:
    """The same, each once it has been written."""
    if output is None:
        for piece in pieces:
            click.echo(piece.text, nl=False)
            yield piece
        return
    with output.open("w", encoding="utf-8") as target:
        for piece in pieces:
            target.write(piece.text)
            target.flush()
            yield piece


def _figures(characters: int, pieces: list["TranslatedPiece"], seconds: float) -> str:
    tokens = sum(piece.output_tokens for piece in pieces)
    again = sum(piece.tries > 1 for piece in pieces)
    return (
        f"{len(pieces)} pieces, {characters:,} characters in {seconds:.1f} s: "
        f"{characters / seconds:,.0f} characters/s, {tokens / seconds:,.0f} output tokens/s; "
        f"{again} tried again"
    )


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:79] + "…"
