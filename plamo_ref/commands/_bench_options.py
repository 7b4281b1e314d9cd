"""The options that the measurements share.

Invariant: an option of the engine is a field of `EngineConfig`, declared there alone.
"""

from pathlib import Path

import click

from plamo_ref.commands._engine_options import engine_options, names
from plamo_ref.commands._options import Command


def bench_options(command: Command) -> Command:
    """The model, and the fields of `EngineConfig` that a measurement may vary."""
    shape = click.option(
        "--shape",
        type=click.Choice(["1b", "8b", "translate"]),
        help="Random weights instead of the model's.",
    )
    model = click.option(
        "--model", default="tiny", show_default=True, help="tiny, a folder, or a hub id."
    )
    # Random weights are asked for by --shape; one engine, and no server, is measured.
    wanted = names(but=("load_format", "data_parallel_size", "warm_up_seconds"))
    return model(shape(engine_options(*wanted)(command)))


def result_option(command: Command) -> Command:
    return click.option(
        "--json",
        "json_file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the result, with machine, versions and command, to this file.",
    )(command)
