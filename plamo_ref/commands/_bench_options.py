"""The options that the measurements share."""

from pathlib import Path
from typing import Any

import click

from plamo_ref.commands._options import Command


def _sizes(context: click.Context, option: click.Parameter, text: str) -> list[int]:
    """ "8,32" → [8, 32]."""
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected numbers, as in 8,32,128") from None


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
            "--kernels",
            type=click.Choice(["auto", "torch", "triton", "cache"]),
            default="auto",
            help="cache: Triton for what touches the cache, torch for the rest.",
            **shown,
        ),
        click.option(
            "--compile-sizes",
            default="",
            callback=_sizes,
            metavar="N,N,…",
            help="Numbers of tokens that get a graph of their own.",
        ),
        click.option(
            "--compile",
            type=click.Choice(["none", "attention", "all"]),
            default="none",
            help="Parts of each layer that torch.compile fuses.",
            **shown,
        ),
        click.option("--precompile/--no-precompile", default=True, **shown),
        click.option("--pdl/--no-pdl", default=True, **shown),
        click.option("--overlap/--no-overlap", default=None, help="Default: on a GPU."),
        click.option("--cuda-graphs/--no-cuda-graphs", default=True, **shown),
        click.option(
            "--graph-tokens",
            default=1024,
            help="Prompt tokens of a step that is still recorded; 0: decode steps only.",
            **shown,
        ),
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
