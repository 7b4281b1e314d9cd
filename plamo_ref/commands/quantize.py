"""Write a model with weights in fewer bytes.

Invariant: the folder is a whole checkpoint, tokenizer included, in a convention that other engines
read; the model that it was made from is not touched.
"""

import shutil
from pathlib import Path

import click

from plamo_ref.commands._options import model_options
from plamo_ref.quantization.schemes import SCHEMES

BESIDE = (".json", ".jsonl", ".jinja", ".model", ".txt")  # what a tokenizer and a template are in


@click.command()
@model_options
@click.option("--scheme", type=click.Choice(tuple(SCHEMES)), required=True, help="How.")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def quantize(model: str, revision: str | None, offline: bool, scheme: str, folder: Path) -> None:
    """Write a model to FOLDER with its products quantized, as compressed-tensors stores them."""
    from plamo_ref.intake.checkpoint_files import CONFIG_FILE, GENERATION_FILE, INDEX_FILE
    from plamo_ref.intake.hub import find
    from plamo_ref.weights.checkpoint import Checkpoint, save

    source = find(model, revision=revision, offline=offline)
    if folder.exists() and folder.samefile(source):
        raise click.UsageError(f"{folder} is the model itself: name another folder")
    checkpoint = Checkpoint.open(source)
    if checkpoint.config.quantization is not None:
        name = checkpoint.config.quantization
        raise click.UsageError(f"{model} is quantized already ({name}): take the original")
    save(
        folder,
        checkpoint.config,
        checkpoint.tensors(),
        generation_config=checkpoint.generation_config or None,
        quantization=scheme,
    )
    for file in sorted(source.iterdir()):
        ours = file.name in (CONFIG_FILE, GENERATION_FILE, INDEX_FILE)
        if file.suffix in BESIDE and not ours and file.is_file():
            shutil.copyfile(file, folder / file.name)
    before, after = checkpoint.nbytes, sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    click.echo(f"{folder}: {after:,} bytes of weights, {after / before:.0%} of {before:,}")
