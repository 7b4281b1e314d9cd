"""One generation, from arrival to its last token.

Invariant: `num_computed_tokens` tokens of the request are in the cache, counted from its first;
what is left to compute is always the tail of `prompt_ids + output_ids`, and of the tokens that a
launched step has chosen and the host has not read yet: their number is known, their value is not.

What a request durably is: its prompt, parameters, seed and arrival, its `output_ids`, and once it
has ended `finish_reason`. Each of these changes by one assignment or one append. All other fields
follow from them, and recovery.py makes them again after an error.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from plamo_ref.engine.memory.holding import Holding
from plamo_ref.sampling import Guide, SamplingParams, TokenLogprobs

Status = Literal["waiting", "running", "finished"]
FinishReason = Literal["stop", "length", "abort", "error"]
ENDLESS = 1 << 62


@dataclass
class RequestTimes:
    """Seconds on one monotonic clock; None: has not happened."""

    queued: float
    first_token: float | None = None
    finished: float | None = None


@dataclass(eq=False)
class Request:
    """What the scheduler moves through the engine."""

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    stop_ids: Collection[int]
    seed: int
    arrival: int  # order of arrival, which decides who goes first
    guide: Guide | None = None  # the progress of its grammar
    awaits_guide: bool = False  # its grammar has not said yet what may come next
    under_way: bool = False  # in a step of a pipeline that has not come to its end
    max_output_tokens: int = ENDLESS  # with so many it ends, whatever they are
    most_new: int = 1  # tokens that it can get in a step
    borders: tuple[int, ...] = ()  # positions in the prompt behind which others may go another way
    output_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # of the output, if asked for
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # from the second token on
    num_computed_tokens: int = 0
    num_unread_tokens: int = 0  # chosen by a launched step; still on the device
    # Its memory, once all that it computes in a step is the token that it got in the last one.
    settled: Holding | None = None
    num_preemptions: int = 0
    num_cached_tokens: int | None = None  # not computed, but found; None: it has not begun
    cache_miss: str = ""  # why it was not more (see prefix.py); "": there was no more to be found
    status: Status = "waiting"
    finish_reason: FinishReason | None = None
    error: Exception | None = None  # why, if the reason is "error"
    times: RequestTimes = field(default_factory=lambda: RequestTimes(time.perf_counter()))

    def __post_init__(self) -> None:
        self.is_plain = self.guide is None and self.params.is_plain  # each step asks everybody
        self.is_greedy = self.params.greedy  # likewise

    @property
    def num_output_tokens(self) -> int:
        return len(self.output_ids) + self.num_unread_tokens

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids) + self.num_unread_tokens

    @property
    def num_known_tokens(self) -> int:
        """Those whose value the host knows: all but the unread."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_reusable_tokens(self) -> int:
        """How many it need not compute itself, if somebody has done it: all but the last, and none
        whose log probability is still to be noted."""
        if self.unscored(0, len(self.prompt_ids)):
            return len(self.prompt_logprobs)
        return self.num_tokens - 1

    @property
    def num_uncomputed_tokens(self) -> int:
        """What it got in the last step, mostly 1; before, the rest of what it must compute."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def is_decoding(self) -> bool:
        new = self.num_uncomputed_tokens
        return self.num_output_tokens > 0 and 0 < new <= self.most_new and new < self.num_tokens

    @property
    def can_run(self) -> bool:
        """Whether a running request may get tokens in the next step."""
        return self.status == "running" and not self.rests

    @property
    def rests(self) -> bool:
        """Whether it is not known yet what it will compute next."""
        return self.awaits_guide or self.under_way

    @property
    def marks(self) -> list[int]:
        """Where the prompt is to be kept for others: at its borders, a token before its end."""
        last = len(self.prompt_ids) - 1
        return sorted({end for end in self.borders if 0 < end < last} | {last})

    def tokens(self, start: int, end: int) -> list[int]:
        """Token ids at positions start to end - 1; those that are not read yet are missing."""
        prompt = len(self.prompt_ids)
        if start >= prompt:
            return self.output_ids[start - prompt : end - prompt]
        return [
            *self.prompt_ids[start:end],
            *self.output_ids[max(0, start - prompt) : max(0, end - prompt)],
        ]

    def append(self, token: int) -> None:
        """Take a sampled token; it is computed in a later step.

        Raises:
            GuidedError: its grammar did not allow it.
        """
        if not self.output_ids:
            self.times.first_token = time.perf_counter()
        self.output_ids.append(token)
        if self.guide is not None:
            self.guide.accept(token)

    def unscored(self, start: int, end: int) -> range:
        """Prompt positions, among the tokens start to end - 1, whose successor needs a logprob.

        A recomputed prompt has them already.
        """
        if self.params.prompt_logprobs is None:
            return range(0)
        return range(max(start, len(self.prompt_logprobs)), min(end, len(self.prompt_ids) - 1))

    def reset(self) -> None:
        """Preempted: nothing is in the cache any more; the output so far is kept."""
        self.num_computed_tokens = 0
        self.settled = None
        self.num_preemptions += 1
        self.status = "waiting"

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        self.error = error
        del self.logprobs[len(self.output_ids) :]  # of a token that was an error
        self.finish_reason = reason  # from here on it has ended, whatever comes between
        self.status = "finished"
        self.awaits_guide = False
        self.settled = None
        if self.guide is not None:
            self.guide.close()
        self.times.finished = time.perf_counter()
