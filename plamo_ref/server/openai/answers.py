"""What the routes answer: each class makes the bytes of its answers, and their schema.

Invariant: of what is answered whole, the OpenAPI document says exactly this. What is UNSET is left
out of an answer; what is None is null in it.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

OfTokens = Annotated[
    Sequence[int] | UnsetType | None, Meta(description="If return_token_ids is true.")
]


class PromptDetails(Struct, frozen=True):
    """Of the tokens of prompts."""

    cached_tokens: Annotated[
        int, Meta(description="They need not be computed: others began alike.")
    ]


class Usage(Struct, frozen=True):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Columns(Struct, frozen=True):
    """Log probabilities of a completion."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Scored(Struct, frozen=True):
    """A token that is, or could be, in a prompt."""

    logprob: float
    rank: int
    decoded_token: str


PromptTokens = Annotated[  # of each token but the first, by token id
    list[dict[str, Scored] | None] | UnsetType | None, Meta(description="If asked for.")
]


class CompletionChoice(Struct, frozen=True):
    """One continuation, or in a stream what it grew by."""

    index: int
    text: str
    logprobs: Columns | None
    finish_reason: str | None
    # With a finish_reason: what ended it, None for EOS or the length.
    stop_reason: str | int | UnsetType | None = UNSET
    # For those who ask: once for each choice, and of each token. Whole answers have them always.
    prompt_token_ids: OfTokens = UNSET
    token_ids: OfTokens = UNSET
    prompt_logprobs: PromptTokens = UNSET


class CompletionAnswer(Struct, frozen=True):
    """Of POST /v1/completions."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class MadeCallFunction(Struct, frozen=True):
    """A function, and its arguments in JSON."""

    name: str
    arguments: str


class MadeCall(Struct, frozen=True):
    """A call that the assistant wants to be made."""

    id: str
    type: str
    function: MadeCallFunction


class AssistantMessage(Struct, frozen=True):
    """What the assistant says, and calls."""

    role: str
    content: str | None
    refusal: str | None = None
    tool_calls: list[MadeCall] | UnsetType = UNSET


class TopToken(Struct, frozen=True):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(TopToken, frozen=True):
    """A token, and those that could have come instead."""

    top_logprobs: list[TopToken]


class ChatTokens(Struct, frozen=True):
    """Log probabilities of a turn."""

    content: list[ChatToken]
    refusal: list[ChatToken] | None = None


class ChatChoice(Struct, frozen=True):
    """One next turn."""

    index: int
    message: AssistantMessage
    logprobs: ChatTokens | None
    finish_reason: str | None
    stop_reason: str | int | None
    token_ids: OfTokens = None


class ChatAnswer(Struct, frozen=True):
    """Of POST /v1/chat/completions."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    # vLLM's clients look for these without asking whether they are there.
    prompt_token_ids: OfTokens = None
    prompt_logprobs: PromptTokens = None


class WrittenDetails(Struct, frozen=True):
    """Of the tokens of an answer."""

    reasoning_tokens: int = 0


class ReadDetails(PromptDetails, frozen=True):
    """Of the tokens of a prompt."""

    cache_write_tokens: int = 0


class ResponseUsage(Struct, frozen=True):
    """Counts of tokens, in the words of /v1/responses."""

    input_tokens: int
    input_tokens_details: ReadDetails
    output_tokens: int
    total_tokens: int
    output_tokens_details: WrittenDetails = WrittenDetails()


class ResponseAnswer(Struct, frozen=True, kw_only=True):
    """Of POST /v1/responses. Its items are messages and calls of functions."""

    id: str
    object: str = "response"
    created_at: int
    status: str = "in_progress"
    model: str
    error: dict[str, str] | None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None = None
    background: bool = False
    store: bool = False
    temperature: float
    top_p: float
    text: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    truncation: str = "disabled"
    output: list[dict[str, Any]] = []
    usage: ResponseUsage | None = None


class ModelCard(Struct, frozen=True):
    """A model that is served."""

    id: str
    object: str
    created: int
    owned_by: str
    root: str
    max_model_len: int


class ModelList(Struct, frozen=True):
    """Of GET /v1/models."""

    object: str
    data: list[ModelCard]


class Tokenized(Struct, frozen=True):
    """Of POST /tokenize."""

    tokens: list[int]
    count: int
    max_model_len: int
    token_strs: list[str] | None


class Detokenized(Struct, frozen=True):
    """Of POST /detokenize."""

    prompt: str


class TokenizerInfo(Struct, frozen=True):
    """Of GET /tokenizer_info; the names are those that evaluation harnesses look for."""

    tokenizer_class: str
    vocab_size: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None


class Version(Struct, frozen=True):
    """Of GET /version."""

    version: str


class Reset(Struct, frozen=True):
    """Of POST /reset_prefix_cache."""

    success: bool


class Health(Struct, frozen=True):
    """Of GET /health."""

    status: str
    restarts: int
    replicas: Annotated[
        Mapping[str, str] | UnsetType, Meta(description="Their states, if there are several.")
    ] = UNSET
