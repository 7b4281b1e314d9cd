"""Every knob of the HTTP face, in one frozen place.

Invariant: the defaults are safe: loopback only, no CORS, everything that a client sends is bounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How the server behaves. Sizes are in bytes and tokens."""

    model_name: str  # what clients call the model, and what answers call it
    aliases: tuple[str, ...] = ()  # what clients may call it as well
    root_path: str = ""  # where a proxy that strips it puts this server: "/plamo"
    api_keys: tuple[str, ...] = ()  # any of them opens; none: the server is open
    cors_origins: tuple[str, ...] = ()  # none: no CORS headers at all
    max_body_bytes: int = 4 << 20
    max_values: int = 1 << 18  # in a body; more, where the model's context is longer
    head_seconds: float = 10.0  # for a client to send the head of a request
    body_seconds: float = 60.0  # … and its body
    read_seconds: float = 60.0  # … and to read what fills the connection's buffer
    max_prompts: int = 256  # in one request
    max_choices: int = 64  # n
    max_copied_bytes: int = 16 << 20  # prompts times choices, on their way to the engine
    max_logprobs: int = 20
    max_stops: int = 16
    max_stop_length: int = 256  # characters of a stop string
    tool_call_parser: str | None = None  # a name of tool_forms.FORMS; None: as the template shows
    default_max_tokens: int = 16  # of a completion, as OpenAI's; a chat goes on to the limit
    # What generation_config.json sets where a client says nothing: fields of SamplingParams.
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_names(self) -> tuple[str, ...]:
        return (self.model_name, *self.aliases)
