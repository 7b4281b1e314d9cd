"""Options of vLLM's server that people have in their scripts; --help does not show them.

Invariant: one that changes nothing here is accepted with a line of notice, one that has an
equivalent is translated, any other is refused by name: `plamo_ref.intake.vllm_names` says which
is which.
"""

import ast
from collections.abc import Mapping
from typing import Any

import click

from plamo_ref.commands._options import Command
from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.vllm_names import MODEL, translate

FLAGS = (
    "trust_remote_code",
    "enforce_eager",
    "async_scheduling",
    "enable_chunked_prefill",
    "enable_expert_parallel",
    "enable_lora",
    "enable_log_requests",
    "enable_sleep_mode",
    "disable_custom_all_reduce",
    "disable_log_requests",
    "disable_log_stats",
    "calculate_kv_scales",
    "skip_tokenizer_init",
    "use_v2_block_manager",
)
ELSEWHERE = ("served_model_name", "max_logprobs")  # options that we have


class OptionError(PlamoRefError, ValueError):
    """An option of vLLM's server that cannot be had here; the message says what can."""


def names() -> list[str]:
    return [name for name in MODEL if name not in ELSEWHERE]


def options(command: Command) -> Command:
    """All of them, hidden; None where not given."""
    for name in names():
        flag = "--" + name.replace("_", "-")
        if name in FLAGS:
            option = click.option(f"{flag}/--no-{flag[2:]}", default=None, hidden=True)
        else:
            option = click.option(flag, type=Literal(), hidden=True)
        command = option(command)
    return command


def translated(given: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Settings of our own for those that were given, and one line of notice or "".

    Raises:
        OptionError: one of them cannot be had.
    """
    asked = {name: given[name] for name in names() if given[name] is not None}
    return translate("serve", asked, {"model": given["model"]}, MODEL, OptionError)


class Literal(click.ParamType):
    """A number, a list, a mapping or None as Python writes it; anything else is a text."""

    name = "value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return ast.literal_eval(value)
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            return value
