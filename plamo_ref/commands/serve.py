"""Serve a model to OpenAI's clients.

Invariant: stdout stays empty; on stderr the first line says where the server listens.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import click

from plamo_ref.commands import _options as options
from plamo_ref.commands import _vllm_options as vllm
from plamo_ref.commands._engine_options import engine_options, names
from plamo_ref.commands._serve_options import SeveralValues, address_options, server_options
from plamo_ref.engine.config import EngineConfig

ENGINE = names()
shown: dict[str, Any] = {"show_default": True}


@click.command(cls=SeveralValues)
@click.argument("model_tag", metavar="[MODEL]", required=False)
@options.model_options
@address_options
@server_options
@click.option("--chat-template", metavar="NAME", help="plain, translate, or a Jinja file.")
@click.option(
    "--engine-restarts",
    type=click.IntRange(0),
    default=3,
    help="In a row, of an engine that dies over no request; 0: the server exits.",
    **shown,
)
@click.option(
    "--stall-seconds",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    help="Without progress, until the engine counts as stalled.",
    **shown,
)
@click.option("--max-requests", type=click.IntRange(1), default=1024, help="At a time.", **shown)
@click.option(
    "--drain-seconds",
    type=click.FloatRange(0),
    default=30.0,
    help="For streams to end after a signal.",
    **shown,
)
@click.option(
    "--address",
    metavar="ADDRESS",
    help="Of a Ray cluster to serve on: auto, host:port or ray://host:port. Default: RAY_ADDRESS, "
    "or this machine alone, where --data-parallel-size asks for replicas.",
)
@engine_options(*ENGINE)
@vllm.options
def serve(
    model_tag: str | None, model: str, served_model_names: tuple[str, ...], **given: Any
) -> None:
    """Serve a model over HTTP, to clients made for OpenAI's API.

    MODEL says the same as --model.

    It listens on this machine alone unless --host says otherwise; then think of --api-key.
    """
    from plamo_ref.remote.async_llm import AsyncLLM
    from plamo_ref.server import run
    from plamo_ref.server.config import ServerConfig
    from plamo_ref.server.edge.listen import Address

    model = _one_model(model_tag, model)
    translated, notice = vllm.translated(given | {"model": model})
    name, *aliases = served_model_names or (model,)
    config = ServerConfig(model_name=name, aliases=tuple(aliases), **_of(ServerConfig, given))
    engine = {name: given[name] for name in ENGINE} | translated
    where = {name: given[name] for name in ("revision", "offline", "max_requests")}
    client = where | {
        "max_restarts": given["engine_restarts"],
        "stall_seconds": given["stall_seconds"],
    }

    def listening(address: str) -> None:
        click.echo(f"listening on {address}", err=True)
        if notice:
            click.echo(notice, err=True)

    listens = Address(**_of(Address, given))
    rest = {"chat_template": given["chat_template"], "drain_seconds": given["drain_seconds"]}
    if engine["data_parallel_size"] == 1 and given["address"] is None:
        llm = AsyncLLM(model, **client, **engine)
        serving = run.serve(llm, config, address=listens, **rest, listening=listening)
        run.until_done(serving)
        return
    from plamo_ref.cluster.serving import Deployment, serve

    what = Deployment(
        model=model,
        engine=EngineConfig(**engine),
        server=config,
        client=client,
        address=listens,
        **rest,
    )
    serve(what, address=given["address"], listening=listening)


def _one_model(tag: str | None, model: str) -> str:
    """The model, of which `model` may be the default."""
    source = click.get_current_context().get_parameter_source("model")
    if tag not in (None, model) and source is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError(
            f"the model is {tag!r}, and --model is {model!r}: give one of the two"
        )
    return model if tag is None else tag


def _of(owner: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that are fields of `owner`."""
    return {field.name: given[field.name] for field in fields(owner) if field.name in given}
