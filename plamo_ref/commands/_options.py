"""What several commands ask for: which model, how to sample, where the prompt is.

Invariant: neither torch nor the hub library is imported here, so `plamo-ref NAME --help` is quick.
"""

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from plamo_ref.engine.dtypes import DTYPES

if TYPE_CHECKING:
    from plamo_ref.sampling import SamplingParams

Command = TypeVar("Command", bound=Callable[..., Any])


def model_options(command: Command, default: str = "tiny") -> Command:
    """--model, --revision, --offline: what `plamo_ref.intake.hub.find` takes."""
    for option in (
        click.option("--offline", is_flag=True, help="Use what is in the hub cache, ask nobody."),
        click.option("--revision", help="Branch, tag or commit of a hub id."),
        click.option(
            "--model",
            default=default,
            show_default=True,
            metavar="NAME",
            help='"tiny", a folder, or a hub id "org/name".',
        ),
    ):
        command = option(command)
    return command


def sampling_options(command: Command) -> Command:
    """The fields of `SamplingParams` that make sense on a command line, same defaults but one."""
    shown: dict[str, Any] = {"show_default": True}
    for option in (
        click.option("--stop", multiple=True, metavar="TEXT", help="End before TEXT; repeatable."),
        click.option("--seed", type=int, help="The same seed gives the same text."),
        click.option("--min-p", default=0.0, help="Drop p below MIN_P times the best.", **shown),
        click.option("--top-p", default=1.0, help="Keep the likeliest that reach p.", **shown),
        click.option("--top-k", default=0, help="Keep the k likeliest; 0: all.", **shown),
        click.option("--temperature", default=1.0, help="0: always the likeliest.", **shown),
        click.option("--max-tokens", default=128, help="Tokens at most.", **shown),
    ):
        command = option(command)
    return command


def dtype_option(default: str, what: str) -> Callable[[Command], Command]:
    return click.option(
        "--dtype", type=click.Choice(DTYPES), default=default, show_default=True, help=what
    )


def sampling_params(options: dict[str, Any]) -> "SamplingParams":
    """The values of `sampling_options` as parameters.

    Raises:
        SamplingError: an impossible value.
    """
    from plamo_ref.sampling import SamplingParams

    return SamplingParams(**options)


def read_prompt(prompt: str) -> str:
    """The text itself, or, for "-", standard input without its last newline."""
    if prompt != "-":
        return prompt
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"standard input is not UTF-8: {error}") from None
    return text.removesuffix("\n").removesuffix("\r")


class ByteSize(click.ParamType):
    """A number of bytes: 24GB, 1.5GiB, 800MB, or plain digits."""

    name = "bytes"
    UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12} | {
        "KIB": 2**10,
        "MIB": 2**20,
        "GIB": 2**30,
        "TIB": 2**40,
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Raises `click.BadParameter` for what is not a size."""
        match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", str(value))
        try:
            assert match is not None
            return int(float(match[1]) * self.UNITS[match[2].upper()])
        except (AssertionError, KeyError, ValueError):
            self.fail(f"{value!r} is not a size; examples: 24GB, 1.5GiB, 800MB", param, ctx)
