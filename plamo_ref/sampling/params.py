"""What a user can ask of a generation. Names and defaults follow vLLM's offline API.

Invariant: parameters that exist are possible ones, of Python's own types. None is a value where it
is one in vLLM: it stands for the default, or for "not asked for".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from plamo_ref.errors import PlamoRefError
from plamo_ref.grammar.guided import GuidedParams
from plamo_ref.intake.values import (
    Flag,
    Function,
    Kind,
    Listed,
    Made,
    Mapped,
    NoneFor,
    Number,
    Seed,
    Text,
    Whole,
    read_fields,
)
from plamo_ref.intake.vllm_names import SAMPLING, speaks_vllm
from plamo_ref.sampling.processors import LogitsProcessor
from plamo_ref.sampling.random import child_seed

GREEDY_TEMPERATURE = 1e-5  # below it the distribution is an argmax for every float32 logit
MAX_LOGPROBS = 100  # alternatives reported for one token
MAX_COMPLETIONS = 16_384  # of one prompt


class SamplingError(PlamoRefError, ValueError):
    """A sampling parameter with an impossible value."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose tokens and when to stop."""

    n: int = 1  # completions of the prompt
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # keep the k most likely tokens; 0 or -1: all
    top_p: float = 1.0  # keep the fewest most likely tokens whose probabilities reach p
    min_p: float = 0.0  # drop tokens below min_p times the probability of the likeliest
    repetition_penalty: float = 1.0  # divides positive logits of tokens seen, multiplies negative
    presence_penalty: float = 0.0  # subtracted once for each token in the output
    frequency_penalty: float = 0.0  # subtracted for each time a token is in the output
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # token id → added to its logit
    seed: int | None = None  # None: derived from the engine's seed and the request
    max_tokens: int | None = 16  # None: as many as fit
    min_tokens: int = 0  # no stop token, and no end by a stop string, before so many
    stop: Sequence[str] = ()  # a plain string means a list of one
    stop_token_ids: Sequence[int] = ()  # besides the checkpoint's own
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True  # in the text; the ids are always complete
    logprobs: int | None = None  # report each token's log probability and so many alternatives
    prompt_logprobs: int | None = None  # the same for the prompt's tokens
    guided: GuidedParams | None = None  # a grammar to follow; once done, it overrules min_tokens
    logits_processors: Sequence[
        LogitsProcessor
    ] = ()  # functions of the user's own, before all else
    cache_salt: str | None = None  # only requests with the same one share what was computed

    def __post_init__(self) -> None:
        read_fields(self, _KINDS, SamplingError)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise SamplingError(
                f"min_tokens must be between 0 and max_tokens, not {self.min_tokens}: "
                f"max_tokens is {self.max_tokens}"
            )

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def is_plain(self) -> bool:
        """Whether only the tokens are wanted, chosen from the logits as they are."""
        return not self.changes_logits and self.logprobs is None and self.prompt_logprobs is None

    @property
    def changes_logits(self) -> bool:
        """Whether anything but temperature and truncation stands between logits and choice."""
        own, fixed = self.logits_processors, self.logit_bias
        return bool(self.penalises or fixed or self.min_tokens or self.guided or own)

    @property
    def penalises(self) -> bool:
        """Whether it matters which tokens have occurred, and how often."""
        by_count = self.presence_penalty != 0 or self.frequency_penalty != 0
        return by_count or self.repetition_penalty != 1

    def completion(self, index: int) -> "SamplingParams":
        """The parameters of completion `index` of `n`, on its own."""
        if self.n == 1:
            return self
        seed = None if self.seed is None else child_seed(self.seed, index)
        return replace(self, n=1, seed=seed)

    def as_text(self) -> "SamplingParams":
        """The same, with nothing in it that nests: what one process tells another."""
        guided = self.guided
        if not isinstance(guided, GuidedParams) or isinstance(guided.json, str | None):
            return self
        return replace(self, guided=guided.as_text())


# Which values a field may have. Counts that are as good as endless are clipped, not refused.
_PENALTY = Number("between -2 and 2", lambda x: -2 <= x <= 2)
_COUNT = Whole(f"0 to {MAX_LOGPROBS}", most=MAX_LOGPROBS)
_TOKEN = Whole("0 or more")
_KINDS: Mapping[str, Kind] = {
    "n": Whole(f"1 to {MAX_COMPLETIONS:,}", least=1, most=MAX_COMPLETIONS),
    "temperature": Number("0 or more", lambda x: 0 <= x < math.inf),
    "top_k": Whole("-1, 0 (both: all tokens) or more", least=-1, clipped=True),
    "top_p": Number("above 0 and at most 1", lambda x: 0 < x <= 1),
    "min_p": Number("between 0 and 1", lambda x: 0 <= x <= 1),
    "repetition_penalty": Number("above 0", lambda x: 0 < x < math.inf),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    "logit_bias": NoneFor(
        Mapped(
            "a mapping from token ids (integers) to numbers below infinity",
            _TOKEN,
            Number("below infinity", lambda x: x < math.inf),
        ),
        meaning={},
    ),
    "seed": NoneFor(Seed()),
    "max_tokens": NoneFor(Whole("1 or more", least=1, clipped=True)),
    "min_tokens": Whole("0 or more", clipped=True),
    "stop": NoneFor(Listed("texts, none of them empty", Text(), alone=True), meaning=()),
    "stop_token_ids": NoneFor(Listed("a list of token ids (integers)", _TOKEN), meaning=()),
    "ignore_eos": Flag(),
    "include_stop_str_in_output": Flag(),
    "skip_special_tokens": Flag(),
    "logprobs": NoneFor(_COUNT),
    "prompt_logprobs": NoneFor(_COUNT),
    "cache_salt": NoneFor(Text()),
    "logits_processors": NoneFor(
        Listed("functions of token ids and logits", Function()), meaning=()
    ),
    "guided": NoneFor(Made("GuidedParams(json=…) or the like", GuidedParams)),
}
# Around what dataclass has made: copies, `replace` and decoding go their own way.
SamplingParams.__init__ = speaks_vllm(SAMPLING, SamplingError)(SamplingParams.__init__)  # type: ignore[method-assign]
