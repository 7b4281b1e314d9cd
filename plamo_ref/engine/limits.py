"""What a request must be so that it can run: known tokens, and not too many of them.

Invariant: a request that passes can always be finished by this engine, alone if need be.
"""

from collections.abc import Iterable, Sequence
from operator import index

from plamo_ref.engine.cache import HybridCache
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.sampling import SamplingParams


def longest_request(config: EngineConfig, cache: HybridCache, max_positions: int) -> int:
    """Tokens, prompt and output together, that a request may reach.

    Raises:
        EngineError: more are wanted than the cache holds.
    """
    fits = min(cache.longest_request(), max_positions)
    wanted = config.max_model_len
    if wanted is not None and wanted > fits:
        raise EngineError(
            f"max_model_len={wanted:,} does not fit: the cache holds {int(fits):,} tokens of "
            "one request; raise memory_bytes or lower max_model_len"
        )
    longest = int(fits) if wanted is None else wanted
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
) -> tuple[int, ...]:
    """Refuse what could never run. Returns the prompt's ids.

    Raises:
        EngineError: the request is empty, too long, or not made of known tokens.
    """
    if not isinstance(params, SamplingParams):
        raise EngineError(f"request {request_id}: params must be SamplingParams, not {params!r}")
    prompt = _known(prompt_ids, vocab_size, f"request {request_id}: prompt token {{place}} is")
    named = (*params.logit_bias, *params.stop_token_ids)
    _known(named, vocab_size, f"request {request_id}: logit_bias or stop_token_ids names token")
    if not prompt:
        raise EngineError(f"request {request_id}: the prompt has no tokens")
    if len(prompt) >= max_model_len:
        cure = "give the cache more memory or raise max_model_len"
        if config.scheduler == "v0" and config.chunk_size is None:
            cure = "scheduler='v0' computes a prompt in one step: set chunk_size, or raise "
            cure += "max_num_batched_tokens"
        raise EngineError(
            f"request {request_id}: the prompt has {len(prompt):,} tokens, but prompt and "
            f"output together may have {max_model_len:,}; {cure}"
        )
    return prompt


def _known(token_ids: Iterable[object], vocab_size: int, what: str) -> tuple[int, ...]:
    """The ids as plain integers, if they are integers of the vocabulary."""
    try:
        tokens = tuple(token_ids)
    except TypeError:
        raise EngineError(f"{what.format(place=0)} {token_ids!r}; expected token ids") from None
    known: list[int] = []
    for place, token in enumerate(tokens):
        try:
            number = None if isinstance(token, bool) else index(token)  # type: ignore[arg-type]
        except TypeError:
            number = None
        if number is None or not 0 <= number < vocab_size:
            raise EngineError(
                f"{what.format(place=place)} {token!r}; "
                f"the vocabulary has ids 0 to {vocab_size - 1}"
            )
        known.append(number)
    return tuple(known)
