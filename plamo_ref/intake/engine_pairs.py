"""Settings of an engine that do not go together.

Invariant: each of them is in its range by then; a message names both, and which to leave out.
"""

from collections.abc import Collection
from typing import Any

from plamo_ref.errors import PlamoRefError


def check_together(config: Any, fewer: Collection[str], error: type[PlamoRefError]) -> None:
    """Raises an `error`: two fields of an `EngineConfig` contradict each other. `fewer` are the
    bytes of states."""
    if (config.chunk_size or 0) > config.step_tokens:
        raise error(
            f"chunk_size ({config.chunk_size}) must not exceed max_num_batched_tokens "
            f"({config.step_tokens}): a chunk is computed in one step"
        )
    if config.chunk_size is not None and config.scheduler == "v1":
        raise error(
            "chunk_size belongs to scheduler='v0'; v1 cuts prompts where the token budget ends "
            "(max_num_batched_tokens)"
        )
    if config.max_step_time_ms and (config.scheduler == "v0" or config.pipeline_parallel_size > 1):
        raise error(
            f"max_step_time_ms={config.max_step_time_ms:g} bounds the steps of scheduler='v1' on "
            "one stage: leave it out, or scheduler='v0' and pipeline_parallel_size"
        )
    if config.state_rounding != "nearest" and config.state_dtype not in ("bfloat16", *fewer):
        raise error(
            f"state_rounding={config.state_rounding!r} is for states in fewer bits than they are "
            f"computed with: set state_dtype to bfloat16, {' or '.join(fewer)}"
        )
    if config.speculative_config is not None and config.pipeline_parallel_size > 1:
        raise error(
            "speculative_config is for layers on one stage: leave it out, or "
            f"pipeline_parallel_size={config.pipeline_parallel_size}"
        )
    if config.num_ranks > 1 and config.compile != "none":
        raise error(
            f"compile={config.compile!r} fuses the layers of one process: leave it out where "
            f"{config.num_ranks} share a model"
        )
