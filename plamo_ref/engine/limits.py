"""What a request must be so that it can run: known tokens, and not too many of them.

Invariant: a request that passes can always be finished by this engine, alone if need be, and
nothing in it is of a type that a step could stumble over.
"""

from collections.abc import Sequence

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.cache import HybridCache
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.sampling import SamplingParams
from plamo_ref.values import shown


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
        raise EngineError(
            f"max_model_len={wanted:,} does not fit: the cache holds {int(fits):,} tokens of "
            "one request; raise memory_bytes or lower max_model_len"
        )
    longest = int(min(fits, model.model_max_length or fits)) if wanted is None else wanted
    if config.scheduler == "v0" and config.chunk_size is None:
        longest = min(longest, config.max_num_batched_tokens)  # a prompt is one step's work
    return longest


def check_request(
    request_id: str,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    config: EngineConfig,
    vocab_size: int,
    max_model_len: int,
) -> None:
    """Refuse what could never run.

    Raises:
        EngineError: the request is empty, too long, or not made of known tokens; the message
            names the field and the value.
    """
    if not isinstance(params, SamplingParams):
        raise EngineError(f"request {request_id}: {shown(params)} is no SamplingParams")
    if not len(prompt_ids):
        raise EngineError(f"request {request_id}: the prompt has no tokens")
    known = f"the vocabulary has ids 0 to {vocab_size - 1}"
    for place, token in enumerate(prompt_ids):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise EngineError(
                f"request {request_id}: prompt token {place} is {shown(token)}; {known}"
            )
    for field in ("logit_bias", "stop_token_ids"):
        for token in getattr(params, field):
            if not 0 <= token < vocab_size:
                raise EngineError(f"request {request_id}: {field} names token {token}; {known}")
    if len(prompt_ids) >= max_model_len:
        cure = "give the cache more memory or raise max_model_len"
        if config.scheduler == "v0" and config.chunk_size is None:
            cure = "scheduler='v0' computes a prompt in one step: set chunk_size, or raise "
            cure += "max_num_batched_tokens"
        raise EngineError(
            f"request {request_id}: the prompt has {len(prompt_ids):,} tokens, but prompt and "
            f"output together may have {max_model_len:,}; {cure}"
        )
