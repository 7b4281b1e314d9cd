"""The options of `serve` that are not the engine's: the address, the clients, their limits.

Invariant: a default that `ServerConfig` or `Address` has is taken from there.
"""

from dataclasses import fields
from typing import Any

import click

from plamo_ref.chat.tool_forms import FORMS
from plamo_ref.commands._options import Command
from plamo_ref.server.config import ServerConfig
from plamo_ref.server.edge.listen import Address

POSITIVE = click.IntRange(1)
SECONDS = click.FloatRange(0, min_open=True)
FILE = click.Path(exists=True, dir_okay=False)


class SeveralValues(click.Command):
    """Takes `--name a b` for `--name a --name b`, as vLLM does, where an option is repeatable, and
    `--some_name` for `--some-name`, as vLLM does too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        repeatable = {
            flag
            for option in self.params
            if isinstance(option, click.Option) and option.multiple
            for flag in option.opts
        }
        spelt: list[str] = []
        last = None  # the repeatable option that a further value would belong to
        for word in args:
            if word.startswith("-"):
                flag, equals, value = word.partition("=")
                word = (flag.replace("_", "-") if flag.startswith("--") else flag) + equals + value
                last = word if word in repeatable else None
                takes = 1 if last else 0
            elif last is not None:
                spelt += [last] * (1 - takes)
                takes = 0
            spelt.append(word)
        return super().parse_args(ctx, spelt)


class ApiKey(click.ParamType):
    """A key, which may have spaces in it; click would cut that of the environment at them."""

    name = "key"

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Raises `click.BadParameter` for what no client could send, or is no lock."""
        key = str(value)
        if not key.strip():  # whoever wrote --api-key "$KEY" and has no KEY believes in a lock
            self.fail("a key is empty", param, ctx)
        if key != key.strip() or not key.isprintable():
            self.fail(
                "a key begins or ends with a space, or has a control character in it: "
                "no client can send that in a header",
                param,
                ctx,
            )
        return key


def root_path(context: click.Context, option: click.Parameter, path: str) -> str:
    """ "/plamo/" → "/plamo"."""
    path = path.rstrip("/")
    if path and not path.startswith("/"):
        raise click.BadParameter(f"{path!r}: a path begins with /, as in /plamo")
    return path


def server_options(command: Command) -> Command:
    """Fields of `ServerConfig`."""
    for option in (
        _of(ServerConfig, "max_logprobs", type=click.IntRange(0, 100), help="Largest logprobs."),
        _of(ServerConfig, "max_choices", type=POSITIVE, help="Largest n."),
        _of(ServerConfig, "max_prompts", type=POSITIVE, help="In one request."),
        _of(ServerConfig, "max_values", type=POSITIVE, help="In a request's JSON."),
        _of(ServerConfig, "max_body_bytes", type=POSITIVE, help="Of a request."),
        _of(ServerConfig, "read_seconds", type=SECONDS, help="To read a full buffer."),
        _of(ServerConfig, "body_seconds", type=SECONDS, help="To send a body."),
        _of(ServerConfig, "head_seconds", type=SECONDS, help="To send a head."),
        _of(
            ServerConfig,
            "tool_call_parser",
            type=click.Choice(list(FORMS)),
            help="How the model writes calls of tools. Default: as its chat template shows.",
        ),
        click.option("--cors-origin", "cors_origins", multiple=True, help="Repeatable."),
        click.option(
            "--api-key",
            "api_keys",
            type=ApiKey(),
            multiple=True,
            envvar="PLAMO_REF_API_KEY",
            help="Required from clients; repeatable. Also PLAMO_REF_API_KEY, which is one key.",
        ),
        click.option(
            "--root-path",
            default="",
            callback=root_path,
            metavar="PATH",
            help="Where a proxy shows this server, as in /plamo.",
        ),
        click.option(
            "--served-model-name",
            "served_model_names",
            multiple=True,
            metavar="NAME",
            help="What clients call the model; repeatable, the first is in the answers. "
            "Default: that of --model.",
        ),
    ):
        command = option(command)
    return command


def address_options(command: Command) -> Command:
    """Fields of `Address`."""
    for option in (
        _of(Address, "ssl_ciphers", metavar="LIST", help="Of TLS 1.2 and below."),
        _of(
            Address,
            "ssl_cert_reqs",
            type=click.IntRange(0, 2),
            help="Certificates of clients: 0: not asked for, 1: checked, 2: required.",
        ),
        _of(Address, "ssl_ca_certs", type=FILE, help="Who may sign for clients."),
        _of(Address, "ssl_keyfile_password", metavar="TEXT", help="If the key has one."),
        _of(Address, "ssl_certfile", type=FILE, help="Serve HTTPS with this certificate (PEM)."),
        _of(Address, "ssl_keyfile", type=FILE, help="Its key, if it is in another file."),
        _of(Address, "uds", metavar="PATH", help="A Unix socket instead of host and port."),
        _of(Address, "port", type=click.IntRange(0, 65535), help="0: any that is free."),
        _of(Address, "host", help="0.0.0.0: every network of this machine."),
    ):
        command = option(command)
    return command


def _of(owner: type, name: str, **said: Any) -> Any:
    """The option of a field, with the field's default."""
    (default,) = [field.default for field in fields(owner) if field.name == name]
    flag = "--" + name.replace("_", "-")
    return click.option(flag, default=default, show_default=default is not None, **said)
