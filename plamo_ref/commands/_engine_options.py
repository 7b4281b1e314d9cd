"""The options of the commands, made from the fields of `EngineConfig`.

Invariant: an option has its field's name, type, default and help; a value that cannot be is refused
by `EngineConfig` itself. Nothing here imports torch, so `--help` is quick.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from plamo_ref.commands._options import ByteSize, Command
from plamo_ref.engine.config import EngineConfig

# Of `generate` and `chat`, which have one request at a time.
ONE_REQUEST = (
    *("dtype", "quantization", "kv_cache_dtype", "state_dtype"),
    "state_rounding",
    *("device", "tensor_parallel_size", "pipeline_parallel_size", "record"),
)


class Numbers(click.ParamType):
    """ "8,32" → [8, 32]."""

    name = "N,N,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """Raises `click.BadParameter` for what is no list of numbers."""
        if not isinstance(value, str):
            return list(value)
        try:
            return [int(part) for part in value.split(",") if part]
        except ValueError:
            self.fail(f"{value!r}: expected numbers, as in 8,32,128", param, ctx)


class Json(click.ParamType):
    """'{"a": 1}' → {"a": 1}."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises `click.BadParameter` for what is no JSON."""
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(f"{value!r} is no JSON: {error}", param, ctx)


def names(*, but: Collection[str] = ()) -> tuple[str, ...]:
    """The fields of `EngineConfig`, without those named."""
    known = [field.name for field in fields(EngineConfig)]
    assert set(but) <= set(known), f"{set(but) - set(known)}: no fields of EngineConfig"
    return tuple(name for name in known if name not in but)


def engine_options(*wanted: str) -> Callable[[Command], Command]:
    """An option for each field in `wanted`, in the order of `EngineConfig`."""
    kinds = get_type_hints(EngineConfig)
    chosen = [field for field in fields(EngineConfig) if field.name in wanted]
    assert {field.name for field in chosen} == set(wanted), f"{wanted}: no fields of EngineConfig"

    def decorate(command: Command) -> Command:
        for field in reversed(chosen):  # click lists the last decorator first
            command = _option(field, kinds[field.name])(command)
        return command

    return decorate


def _option(field: Field[Any], kind: Any) -> Callable[[Command], Command]:
    flag = "--" + field.name.replace("_", "-")
    said = {"default": field.default, "help": field.metadata["help"]}
    said["show_default"] = field.default not in (None, ())
    if field.metadata["unit"] == "file":
        return click.option(flag, type=click.Path(dir_okay=False), help=said["help"])
    kind = _without_none(kind)
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", **said)
    if get_origin(kind) is Literal:
        return click.option(flag, type=click.Choice(get_args(kind)), **said)
    if field.metadata["choices"]:
        return click.option(flag, type=click.Choice(field.metadata["choices"]), **said)
    if field.metadata["unit"] == "json":
        return click.option(flag, type=Json(), **said)
    if field.metadata["unit"] == "bytes":
        return click.option(flag, type=ByteSize(), **said)
    return click.option(flag, type=kind if kind in (int, float, str) else Numbers(), **said)


def _without_none(kind: Any) -> Any:
    """`int | None` → int."""
    kinds = [one for one in get_args(kind) if one is not type(None)]
    return kinds[0] if type(None) in get_args(kind) else kind
