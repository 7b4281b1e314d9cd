"""From logits to tokens: what a user asks for, and how a token is chosen.

Invariant: what can be asked for is said without torch, whose import takes two seconds that a
server's front need not wait; adjust.py and sampler.py, which compute, are imported by their names.
"""

from plamo_ref.grammar.guided import Guide, GuidedError, GuidedParams, GuideMaker
from plamo_ref.sampling.logprobs import TokenLogprobs, token_logprobs
from plamo_ref.sampling.params import SamplingError, SamplingParams
from plamo_ref.sampling.random import child_seed, uniform

__all__ = [
    "Guide",
    "GuideMaker",
    "GuidedError",
    "GuidedParams",
    "SamplingError",
    "SamplingParams",
    "TokenLogprobs",
    "child_seed",
    "token_logprobs",
    "uniform",
]
