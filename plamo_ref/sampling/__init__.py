"""From logits to tokens: what a user asks for, and how a token is chosen."""

from plamo_ref.grammar.guided import Guide, GuidedError, GuidedParams, GuideMaker
from plamo_ref.sampling.adjust import RowContext, Tables, adjust
from plamo_ref.sampling.logprobs import TokenLogprobs, token_logprobs
from plamo_ref.sampling.params import SamplingError, SamplingParams
from plamo_ref.sampling.random import child_seed, uniform
from plamo_ref.sampling.sampler import Draw, knob_table, sample

__all__ = [
    "Draw",
    "Guide",
    "GuideMaker",
    "GuidedError",
    "GuidedParams",
    "RowContext",
    "SamplingError",
    "SamplingParams",
    "Tables",
    "TokenLogprobs",
    "adjust",
    "child_seed",
    "knob_table",
    "sample",
    "token_logprobs",
    "uniform",
]
