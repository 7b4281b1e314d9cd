"""What a user can ask of a generation. Names and defaults follow vLLM's offline API.

Invariant: parameters that exist are possible ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from plamo_ref.errors import PlamoRefError
from plamo_ref.sampling.guided import GuidedParams
from plamo_ref.sampling.random import child_seed

GREEDY_TEMPERATURE = 1e-5  # below it the distribution is an argmax for every float32 logit
MAX_LOGPROBS = 100  # alternatives reported for one token


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
    max_tokens: int = 16
    min_tokens: int = 0  # no stop token, and no end by a stop string, before so many
    stop: Sequence[str] = ()  # a plain string means a list of one
    stop_token_ids: Sequence[int] = ()  # besides the checkpoint's own
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True  # in the text; the ids are always complete
    logprobs: int | None = None  # report each token's log probability and so many alternatives
    prompt_logprobs: int | None = None  # the same for the prompt's tokens
    guided: GuidedParams | None = None  # a grammar to follow; once done, it overrules min_tokens

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        for name, ok, wanted in (
            ("n", self.n >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= -1, "-1, 0 (both: all tokens) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "between -2 and 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "between -2 and 2"),
            ("logit_bias", all(b < math.inf for b in self.logit_bias.values()), "below infinity"),
            ("max_tokens", self.max_tokens >= 1, "1 or more"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "between 0 and max_tokens"),
            ("stop", all(isinstance(s, str) and s for s in stop), "strings, none of them empty"),
            ("logprobs", _countable(self.logprobs), f"0 to {MAX_LOGPROBS}, or None"),
            ("prompt_logprobs", _countable(self.prompt_logprobs), f"0 to {MAX_LOGPROBS}, or None"),
        ):
            if not ok:
                raise SamplingError(f"{name} must be {wanted}, not {getattr(self, name)!r}")

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def changes_logits(self) -> bool:
        """Whether anything but temperature and truncation stands between logits and choice."""
        penalties = (self.presence_penalty, self.frequency_penalty, self.repetition_penalty - 1)
        return bool(any(penalties) or self.logit_bias or self.min_tokens or self.guided)

    def completion(self, index: int) -> "SamplingParams":
        """The parameters of completion `index` of `n`, on its own."""
        seed = None if self.seed is None else child_seed(self.seed, index)
        return replace(self, n=1, seed=seed)


def _countable(count: int | None) -> bool:
    return count is None or 0 <= count <= MAX_LOGPROBS
