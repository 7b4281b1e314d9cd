"""What the front knows of a call while the engine works on it, and how a call can go wrong.

Invariant: a call that has an error, or whose jobs all have a finish reason, never changes again.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from plamo_ref.engine.request import FinishReason
from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.prompts import PromptError, read_ids
from plamo_ref.intake.values import shown
from plamo_ref.remote.messages import Add, Token
from plamo_ref.sampling import SamplingParams, TokenLogprobs
from plamo_ref.text.stream import TextStream


class EngineDiedError(PlamoRefError, RuntimeError):
    """The engine process ended while it worked on this request."""


class EngineUnavailableError(PlamoRefError, RuntimeError):
    """There is no engine to give a request to: it starts, restarts, or is gone."""


class EngineBusyError(PlamoRefError, RuntimeError):
    """As many requests as are allowed are under way."""


class RequestRefusedError(PlamoRefError, ValueError):
    """A request that can never run; the message is the engine's own."""


class GrammarRefusedError(RequestRefusedError):
    """… because of its grammar."""


class SlowReaderError(PlamoRefError, RuntimeError):
    """The tokens of a call were not fetched, and their number reached its limit."""


@dataclass(frozen=True)
class Job:
    """One completion to make."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    borders: Sequence[int] = ()  # positions in the prompt behind which others may go another way


def checked(job: Job) -> Job:
    """A job with values that can be sent to the engine.

    Raises:
        RequestRefusedError: it is none, or something in it is of another type.
    """
    if not isinstance(job, Job) or not isinstance(job.params, SamplingParams):
        raise RequestRefusedError(f"{shown(job)} is no Job of token ids and SamplingParams")
    if job.params.logits_processors:
        raise RequestRefusedError(
            "logits_processors are functions, which stay in the process that has them: use LLM, "
            "or logit_bias, or a grammar (guided)"
        )
    try:
        return Job(read_ids(job.prompt_ids), job.params, read_ids(job.borders, "borders"))
    except PromptError as error:
        raise RequestRefusedError(str(error)) from None


def check_room(num_jobs: int, under_way: int, most: int) -> None:
    """Whether a call with so many jobs can start now.

    Raises:
        RequestRefusedError: there are too many for any time.
        EngineBusyError: … for now.
    """
    if num_jobs > most:
        raise RequestRefusedError(f"{num_jobs} completions in one call, at most {most} may be")
    if under_way + num_jobs > most:
        raise EngineBusyError(
            f"{under_way} requests are under way, at most {most} may be, and this call brings "
            f"{num_jobs}: try again later"
        )


def tell(send: Callable[[Add], None], request_id: str, job: Job) -> None:
    """Tell the engine of a job.

    Raises:
        RequestRefusedError: it cannot be told this.
    """
    try:
        send(Add(request_id, list(job.prompt_ids), job.params.as_text(), list(job.borders)))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        # Half a character, 65 bits, an object of the user's own: mostly in a JSON schema.
        kind = GrammarRefusedError if job.params.guided else RequestRefusedError
        raise kind(f"the engine cannot be told this: {error}") from None


class Delta(msgspec.Struct, frozen=True):
    """What one token added to one job of a call. (A struct: one is made for every token.)"""

    index: int  # of the job
    token_id: int
    text: str  # often "": half characters and half stop strings wait
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or token that ended it
    logprobs: TokenLogprobs | None = None
    # With the first token: of the prompt, from its second token on.
    prompt_logprobs: Sequence[TokenLogprobs] | None = None
    first: bool = False  # of its job
    waited: float = 0.0  # seconds since the token before; of the first, since the call
    num_cached_tokens: int = 0  # with the first token: of the prompt, what was found computed


@dataclass(eq=False)
class Call:
    """One `generate`: what has come and was not fetched yet.

    Its reader is woken by every step; with `limit` None only once, when all is there: then nothing
    but the lengths of its jobs bounds what waits.
    """

    unfinished: int  # jobs without a finish reason
    limit: int | None  # of tokens that wait
    deltas: list[Delta] = field(default_factory=list)
    error: Exception | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, delta: Delta) -> None:
        if self.error is not None:
            return
        if self.limit is not None and len(self.deltas) >= self.limit:
            self.fail(SlowReaderError(f"{self.limit:,} tokens were not read: the request is ended"))
            return
        self.deltas.append(delta)
        self.unfinished -= delta.finish_reason is not None
        if self.limit is not None or not self.unfinished:
            self.news.set()

    def take(self) -> list[Delta]:
        """What has come since the last time."""
        taken, self.deltas = self.deltas, []
        self.news.clear()
        return taken

    def fail(self, error: Exception) -> None:
        if self.error is None:
            self.error = error
        self.news.set()


@dataclass(eq=False)
class Stream:
    """One job that the engine works on."""

    call: Call
    index: int
    text: TextStream
    first: bool = True  # no token has come
    since: float = field(default_factory=time.perf_counter)  # when the last one came

    def push(self, token: Token, now: float) -> Delta:
        """Take a token: its text, and whether the stream ends with it."""
        waited, self.since = now - self.since, now
        first, self.first = self.first, False
        reason = token.finish_reason
        text = self.text.take(token.token_id, is_stop=not token.is_text, is_last=reason is not None)
        stop_reason: str | int | None = None if token.is_text else token.token_id
        if self.text.stopped_by is not None:  # perhaps only now: what waited has come out
            reason, stop_reason = "stop", self.text.stopped_by
        return Delta(
            self.index,
            token.token_id,
            text,
            reason,
            stop_reason,
            token.logprobs,
            None if token.prompt is None else token.prompt.logprobs,
            first,
            waited,
            0 if token.prompt is None else token.prompt.num_cached_tokens,
        )
