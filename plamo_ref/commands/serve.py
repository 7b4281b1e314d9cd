"""Serve a model to OpenAI's clients.

Invariant: stdout stays empty; on stderr the first line says where the server listens.
"""

from typing import Any

import click

from plamo_ref.commands import _options as options
from plamo_ref.commands import _vllm_options as vllm
from plamo_ref.server.tool_forms import FORMS

ENGINE = (
    "load_format",
    "dtype",
    "device",
    "scheduler",
    "max_num_seqs",
    "max_num_batched_tokens",
    "block_size",
    "memory_bytes",
    "max_model_len",
)
LIMITS = (
    "api_keys",
    "cors_origins",
    "max_body_bytes",
    "head_seconds",
    "body_seconds",
    "read_seconds",
    "max_prompts",
    "max_choices",
    "max_logprobs",
    "tool_call_parser",
)
shown: dict[str, Any] = {"show_default": True}
positive = click.IntRange(1)
seconds = click.FloatRange(0, min_open=True)


def engine_options(command: options.Command) -> options.Command:
    """Fields of `EngineConfig`."""
    for option in (
        click.option("--max-model-len", type=positive, help="Longest prompt and output."),
        click.option("--memory-bytes", type=positive, help="For the cache."),
        click.option("--block-size", type=positive, default=16, **shown),
        click.option("--max-num-batched-tokens", type=positive, default=2048, **shown),
        click.option("--max-num-seqs", type=positive, default=64, **shown),
        click.option("--scheduler", type=click.Choice(["v1", "v0"]), default="v1", **shown),
        click.option("--device", default="auto", **shown),
        click.option("--dtype", default="auto", **shown),
        click.option(
            "--load-format",
            type=click.Choice(["auto", "dummy"]),
            default="auto",
            help="dummy: random weights; the folder needs config.json and the tokenizer only.",
            **shown,
        ),
    ):
        command = option(command)
    return command


def no_empty_key(context: click.Context, option: click.Parameter, keys: Any) -> Any:
    """Whoever wrote --api-key "$KEY" and has no KEY believes that there is a lock."""
    if "" in keys:
        raise click.BadParameter("a key is empty")
    return keys


def server_options(command: options.Command) -> options.Command:
    """Fields of `ServerConfig`, and what is around it."""
    for option in (
        click.option("--drain-seconds", type=click.FloatRange(0), default=30.0, **shown),
        click.option("--max-logprobs", type=click.IntRange(0, 100), default=20, **shown),
        click.option("--max-choices", type=positive, default=64, help="Largest n.", **shown),
        click.option("--max-prompts", type=positive, default=256, **shown),
        click.option("--max-body-bytes", type=positive, default=4 << 20, **shown),
        click.option(
            "--read-seconds", type=seconds, default=60.0, help="To read a full buffer.", **shown
        ),
        click.option("--body-seconds", type=seconds, default=60.0, help="To send a body.", **shown),
        click.option("--head-seconds", type=seconds, default=10.0, help="To send a head.", **shown),
        click.option("--max-requests", type=positive, default=1024, help="At a time.", **shown),
        click.option(
            "--engine-restarts",
            type=click.IntRange(0),
            default=3,
            help="In a row, when the engine dies; 0: the server exits.",
            **shown,
        ),
        click.option(
            "--tool-call-parser",
            type=click.Choice(list(FORMS)),
            help="How the model writes calls of tools. Default: as its chat template shows.",
        ),
        click.option("--chat-template", metavar="NAME", help="plain, translate, or a Jinja file."),
        click.option("--cors-origin", "cors_origins", multiple=True, help="Repeatable."),
        click.option(
            "--api-key",
            "api_keys",
            multiple=True,
            envvar="PLAMO_REF_API_KEY",
            callback=no_empty_key,
            help="Required from clients; repeatable. Also PLAMO_REF_API_KEY.",
        ),
        click.option("--served-model-name", metavar="NAME", help="Default: that of --model."),
        click.option("--port", type=click.IntRange(0, 65535), default=8000, **shown),
        click.option("--host", default="127.0.0.1", **shown),
    ):
        command = option(command)
    return command


@click.command()
@options.model_options
@server_options
@engine_options
@vllm.options
def serve(model: str, host: str, port: int, **given: Any) -> None:
    """Serve a model over HTTP, to clients made for OpenAI's API.

    It listens on this machine alone unless --host says otherwise; then think of --api-key.
    """
    from plamo_ref.engine.async_llm import AsyncLLM
    from plamo_ref.server import run
    from plamo_ref.server.config import ServerConfig

    translated, notice = vllm.translated(given | {"model": model})
    config = ServerConfig(
        model_name=given["served_model_name"] or model, **{name: given[name] for name in LIMITS}
    )
    llm = AsyncLLM(
        model,
        max_restarts=given["engine_restarts"],
        **{name: given[name] for name in (*ENGINE, "revision", "offline", "max_requests")}
        | translated,
    )

    def listening(address: str) -> None:
        click.echo(f"listening on {address}", err=True)
        if notice:
            click.echo(notice, err=True)

    serving = run.serve(
        llm,
        config,
        host=host,
        port=port,
        chat_template=given["chat_template"],
        drain_seconds=given["drain_seconds"],
        listening=listening,
    )
    run.until_done(serving)
