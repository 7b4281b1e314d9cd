"""The options that the measurements share."""

from pathlib import Path
from typing import Any

import click

from plamo_ref.commands._options import Command


def engine_options(command: Command) -> Command:
    """The model, and the fields of `EngineConfig` that a measurement may vary."""
    shown: dict[str, Any] = {"show_default": True}
    for option in (
        click.option("--seed", default=0, **shown),
        click.option("--memory-bytes", type=int, help="For the cache; default: as EngineConfig."),
        click.option("--chunk-size", type=int, help="v0: cut prompts into such chunks."),
        click.option("--scheduler", type=click.Choice(["v1", "v0"]), default="v1", **shown),
        click.option("--block-size", default=16, **shown),
        click.option("--max-num-batched-tokens", default=2048, **shown),
        click.option("--max-num-seqs", default=64, **shown),
        click.option(
            "--kernels", type=click.Choice(["auto", "torch", "triton"]), default="auto", **shown
        ),
        click.option("--cuda-graphs/--no-cuda-graphs", default=True, **shown),
        click.option("--state-dtype", default="auto", **shown),
        click.option("--dtype", default="auto", **shown),
        click.option("--device", default="auto", **shown),
        click.option("--shape", type=click.Choice(["1b", "8b"]), help="Random weights instead."),
        click.option("--model", default="tiny", help="tiny, a folder, or a hub id.", **shown),
    ):
        command = option(command)
    return command


def result_option(command: Command) -> Command:
    return click.option(
        "--json",
        "json_file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the result, with machine, versions and command, to this file.",
    )(command)
