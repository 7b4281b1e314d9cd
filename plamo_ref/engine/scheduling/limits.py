"""What a request must be so that it can run: known tokens, and not too many of them.

Invariant: a request that passes can always be finished by this engine, alone if need be, and
nothing in it is of a type that a step could stumble over.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.intake.prompts import known_ids
from plamo_ref.intake.values import shown
from plamo_ref.sampling import SamplingParams


def longest_request(config: EngineConfig, cache: HybridCache, model: Plamo2Config) -> int:
    """Tokens, prompt and output together, that a request may reach.

    Without `max_model_len` they are as many as the model is good for, if it says so; who asks for
    more gets more, as far as the cache goes.

    Raises:
        EngineError: more are wanted than the cache holds.
    """
    fits = min(cache.longest_request(), model.max_position_embeddings)
    wanted = config.max_model_len
    if wanted is not None and wanted > fits:
        # The planner sees to the cache: it is short only in a plan made for another length.
        cure = f"lower max_model_len to {int(fits):,}"
        positions = model.max_position_embeddings
        why = f"the model has {positions:,} positions: take a model with more"
        if fits < positions:
            why = f"the cache holds {int(fits):,} tokens of one request; raise memory_bytes"
        raise EngineError(f"max_model_len={wanted:,} does not fit: {why}, or {cure}")
    longest = int(min(fits, model.model_max_length or fits)) if wanted is None else wanted
    if config.scheduler == "v0" and config.chunk_size is None:
        longest = min(longest, config.step_tokens)  # a prompt is one step's work
    return longest


@dataclass(frozen=True)
class Limits:
    """What an engine holds a request against."""

    config: EngineConfig
    vocab_size: int
    max_model_len: int  # tokens, prompt and output together

    def check(
        self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams
    ) -> tuple[int, ...]:
        """Refuse what could never run. Returns the prompt's ids.

        Raises:
            EngineError: the request is empty, too long, or not made of known tokens; the message
                names the field and the value.
        """
        mine, size = f"request {request_id}", self.vocab_size
        if not isinstance(params, SamplingParams):
            raise EngineError(f"{mine}: {shown(params)} is no SamplingParams")
        prompt = known_ids(EngineError, prompt_ids, size, f"{mine}: prompt token {{place}} is")
        for field in ("logit_bias", "stop_token_ids"):
            known_ids(EngineError, getattr(params, field), size, f"{mine}: {field} names token")
        if not prompt:
            raise EngineError(f"{mine}: the prompt has no tokens")
        if len(prompt) >= self.max_model_len:
            cure = "give the cache more memory or raise max_model_len"
            if self.config.scheduler == "v0" and self.config.chunk_size is None:
                cure = "scheduler='v0' computes a prompt in one step: set chunk_size, or raise "
                cure += "max_num_batched_tokens"
            raise EngineError(
                f"{mine}: the prompt has {len(prompt):,} tokens, but prompt and output together "
                f"may have {self.max_model_len:,}; {cure}"
            )
        return prompt
