"""Options of vLLM's server that people have in their scripts; --help does not show them.

Invariant: one that changes nothing here is accepted with a line of notice, one that has an
equivalent is translated, any other is refused by name: `plamo_ref.intake.vllm_names` says which
is which of those that an engine has, `SERVER` of those that only a server has.
"""

import ast
from collections.abc import Mapping
from typing import Any

import click

from plamo_ref.commands._options import Command
from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.vllm_names import MODEL, Rule, ignored, missing, only, translate

FLAGS = (
    "trust_remote_code",
    "enforce_eager",
    "async_scheduling",
    "enable_chunked_prefill",
    "enable_expert_parallel",
    "enable_lora",
    "enable_log_requests",
    "enable_sleep_mode",
    "disable_log_requests",
    "disable_log_stats",
    "calculate_kv_scales",
    "skip_tokenizer_init",
    "use_v2_block_manager",
    "disable_fastapi_docs",
    "disable_frontend_multiprocessing",
    "disable_uvicorn_access_log",
    "enable_auto_tool_choice",
    "enable_force_include_usage",
    "enable_log_outputs",
    "enable_prompt_tokens_details",
    "enable_request_id_headers",
    "enable_server_load_tracking",
    "enable_tokenizer_info_endpoint",
    "return_tokens_as_token_ids",
    "trust_request_chat_template",
)
_NO_LOG = "requests are not logged"
SERVER: Mapping[str, Rule] = {
    "allowed_origins": missing("it is --cors-origin here, once for each"),
    "api_server_count": only(1, cure="one process answers; start further servers for more"),
    "chat_template_content_format": only(
        "auto", "string", cure="the content of a message is one text"
    ),
    "disable_fastapi_docs": ignored("there are no such pages"),
    "disable_frontend_multiprocessing": ignored("the engine always has a process of its own"),
    "disable_uvicorn_access_log": ignored(_NO_LOG),
    "enable_auto_tool_choice": ignored("a template that knows tools is enough"),
    "enable_force_include_usage": only(False, cure="stream_options of a request asks for usage"),
    "enable_log_outputs": only(False, cure=_NO_LOG),
    "enable_prompt_tokens_details": ignored("usage says of a prompt what there is to say"),
    "enable_request_id_headers": ignored("every answer has X-Request-Id"),
    "enable_server_load_tracking": only(False, cure="/metrics says how many requests are running"),
    "enable_tokenizer_info_endpoint": ignored("/tokenizer_info always answers"),
    "logprobs_mode": only("raw_logprobs", cure="log probabilities are those of the model"),
    "lora_modules": missing("adapters are not supported: merge them into the checkpoint"),
    "max_log_len": ignored(_NO_LOG),
    "middleware": missing("put a proxy in front of the server"),
    "override_generation_config": missing("--generation-config vllm, or another folder's"),
    "reasoning_parser": missing("the model's reasoning, if it has any, is part of its answer"),
    "response_role": only("assistant", cure="the role that answers is assistant"),
    "return_tokens_as_token_ids": only(False, cure="the field of a request asks for it"),
    "trust_request_chat_template": only(
        False, cure="a client's template would run in the server: give --chat-template"
    ),
    "uvicorn_log_level": ignored(_NO_LOG),
}
ELSEWHERE = ("served_model_name", "max_logprobs")  # options that we have


class OptionError(PlamoRefError, ValueError):
    """An option of vLLM's server that cannot be had here; the message says what can."""


def names() -> list[str]:
    return [name for name in (*MODEL, *SERVER) if name not in ELSEWHERE]


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
    return translate("serve", asked, {"model": given["model"]}, {**MODEL, **SERVER}, OptionError)


class Literal(click.ParamType):
    """A number, a list, a mapping or None as Python writes it; anything else is a text."""

    name = "value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return ast.literal_eval(value)
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            return value
