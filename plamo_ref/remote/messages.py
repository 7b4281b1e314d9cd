"""What the engine process and its front say to each other, and how it is put into bytes.

Invariant: a message is a frozen struct of plain values with one encoding (MessagePack), and its
type names itself: no pickle, no code, nothing that only one of the two sides could understand.

    front → engine   Add, Abort, Audit, Reset, Shutdown
    engine → front   Ready or Failed (once), then Step, Refused, Audited; all the time, Alive
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from plamo_ref.engine.request import FinishReason
from plamo_ref.sampling import SamplingParams, TokenLogprobs

Phase = Literal["loading", "idle", "working", "step", "compiling"]


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine process needs to start: which model, how to run it, where to talk."""

    folder: str  # a checkpoint
    engine: Mapping[str, Any]  # fields of EngineConfig
    inbox: str  # address that the engine reads from
    outbox: str  # … and the one it writes to
    heartbeat_seconds: float = 1.0  # between two Alive messages


class Message(msgspec.Struct, frozen=True, tag=True):
    """One thing said."""


# --- front → engine ------------------------------------------------------------------------------


class Add(Message, frozen=True):
    """Queue a request; answered by Step or Refused."""

    request_id: str
    prompt_ids: list[int]
    params: SamplingParams
    borders: list[int] = []  # positions in the prompt behind which others may go another way


class AddHead(Message, frozen=True, tag="Add"):
    """What can be read of an Add whatever the rest of it is."""

    request_id: str


class Abort(Message, frozen=True):
    """End these requests now. Unknown ones are ignored: they may have ended meanwhile."""

    request_ids: list[str]


class Audit(Message, frozen=True):
    """Check the integrity of the cache; answered by Audited."""

    number: int


class Reset(Message, frozen=True):
    """Forget what was computed for those who have ended."""


class Shutdown(Message, frozen=True):
    """Leave the loop; whatever still runs is dropped."""


# --- engine → front ------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """The model is loaded."""

    max_model_len: int
    max_num_seqs: int
    vocab_size: int
    pid: int


class Failed(Message, frozen=True):
    """The engine could not start; the message is for the user."""

    message: str


class Alive(Message, frozen=True):
    """What the engine's loop is doing, as a thread beside it sees it."""

    phase: Phase
    seconds: float  # since this phase began
    expected: float = 0.0  # of a step: how many seconds it takes at the slowest known pace
    where: str = ""  # which of our lines it is in


class Refused(Message, frozen=True):
    """A request that can never run, or can never end as it was asked to."""

    request_id: str
    message: str
    grammar: bool = False  # because of its grammar


class PromptFacts(msgspec.Struct, frozen=True, array_like=True):
    """What was found out about a request's prompt."""

    num_cached_tokens: int = 0  # that had been computed for others
    logprobs: list[TokenLogprobs] | None = None  # where asked for, from the second token on


class Token(msgspec.Struct, frozen=True, array_like=True):
    """What one step did for one request."""

    request_id: str
    token_id: int
    finish_reason: FinishReason | None = None
    is_text: bool = True  # False: a stop token, part of the text only where that is asked for
    logprobs: TokenLogprobs | None = None  # where the request asked for them
    prompt: PromptFacts | None = None  # with the first token


class PrefixStats(msgspec.Struct, frozen=True, array_like=True):
    """What came of prefix caching since the engine started."""

    asked: int = 0  # tokens of prompts
    found: int = 0  # … that need not be computed
    misses: dict[str, int] = {}  # requests that could have found more, by reason
    evicted: int = 0  # checkpoints
    num_kept: int = 0  # … that are there now
    bytes_kept: int = 0  # memory that is free for whoever wants it, and in use until then


class DraftStats(msgspec.Struct, frozen=True, array_like=True):
    """What came of drafts since the engine started."""

    drafts: int = 0
    tokens: int = 0  # of all of them
    accepted: int = 0  # … that were right


class Stats(msgspec.Struct, frozen=True, array_like=True):
    """The state of the engine between two steps."""

    num_waiting: int = 0
    num_running: int = 0
    num_steps: int = 0
    num_preemptions: int = 0  # since the engine started
    blocks_used: dict[str, int] = {}  # of each attention group
    slots_used: int = 0
    usage: dict[str, float] = {}  # used share of each pool, 0 to 1; what is only kept is free
    prefix: PrefixStats = PrefixStats()
    drafts: DraftStats | None = None  # None: there are none (`speculative_config`)


class Step(Message, frozen=True):
    """What came out of one or more steps."""

    tokens: list[Token]
    stats: Stats | None = None  # not with every step


class Audited(Message, frozen=True):
    """The books of the cache: `problem` is None if every block and slot has its right owners."""

    number: int
    num_requests: int
    stats: Stats
    problem: str | None


ToEngine = Add | Abort | Audit | Reset | Shutdown
ToFront = Ready | Failed | Alive | Refused | Step | Audited


class Codec:
    """Messages to bytes and back. One for each side; it keeps buffers, so not across threads."""

    def __init__(self) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._to_engine = msgspec.msgpack.Decoder(ToEngine)
        self._add_head = msgspec.msgpack.Decoder(AddHead)
        self._to_front = msgspec.msgpack.Decoder(ToFront)

    def encode(self, message: ToEngine | ToFront) -> bytes:
        return self._encoder.encode(message)

    def for_engine(self, data: bytes) -> ToEngine:
        return self._to_engine.decode(data)

    def id_of_add(self, data: bytes) -> str:
        """The request that an ill-typed Add wants to queue.

        Raises:
            msgspec.DecodeError: it is no Add at all.
        """
        return self._add_head.decode(data).request_id

    def for_front(self, data: bytes) -> ToFront:
        return self._to_front.decode(data)
