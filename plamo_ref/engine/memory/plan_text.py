"""A memory plan in sentences: its reasons, or why there is none.

Invariant: nothing is decided here; every number is of the plan, or of what it was made of.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from plamo_ref.config import LayerKind, Plamo2Config
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.dtypes import BYTES

if TYPE_CHECKING:
    from plamo_ref.engine.memory.pages import Pages
    from plamo_ref.engine.memory.planner import Needs


def refusal(
    engine: EngineConfig, budget: int, needs: "Needs", bytes_of: Callable[[int], int]
) -> str:
    """Why nothing can be planned, and what would do. `bytes_of`: needs by length in tokens."""
    blocks = needs.span * needs.window_bytes + needs.full_span * needs.full_bytes
    what = f"{needs.span} blocks for its window in each attention group"
    if needs.full_span > needs.span:
        tokens = f"max_model_len={engine.max_model_len:,} tokens"
        what = f"{needs.span} blocks for a window, {needs.full_span} for {tokens}"
        what = what if needs.window_bytes else f"{needs.full_span} blocks for {tokens}"
    longest = engine.max_model_len or needs.span * needs.size
    fits = bisect_right(range(1, longest + 1), budget, key=bytes_of)
    shorter = f", or set max_model_len={fits} or less" if fits > 1 else ""  # a prompt, an answer
    return (
        f"the cache has {budget:,} bytes, but one request needs {needs.first_bytes:,}: "
        f"a state slot ({needs.slot_bytes:,}), {what} ({blocks:,}) and one spare place of each "
        f"({needs.reserved:,}). Raise memory_bytes or gpu_memory_utilization{shorter}"
    )


def reasons(
    config: Plamo2Config,
    engine: EngineConfig,
    places: tuple[int, int],
    needs: "Needs",
    num_blocks: Mapping[LayerKind, int],
    left: int,
) -> tuple[str, ...]:
    """The plan in sentences."""
    (seats, kept), size = places, needs.size
    window, span = config.attention_window_size, needs.span
    seat_bytes = needs.seat_bytes + span * needs.full_bytes
    whole = engine.max_model_len is not None and engine.max_model_len < window
    reach = "the longest request" if whole else f"W + 1 = {window + 1} keys"
    limit = "max_num_seqs" if seats == engine.seats else "memory"
    lines = [
        f"{seats} seats, limited by {limit}: each {seat_bytes:,} bytes = a state slot and "
        f"{span} blocks of {size} tokens per attention group, enough for {reach}"
    ]
    if config.quantization is not None:
        plain = config.num_parameters * 2
        lines.append(
            f"weights of {config.weight_bytes():,} bytes, with products as {config.quantization} "
            f"(quantization); {plain:,} in bfloat16"
        )
    if "sliding_window" in num_blocks:
        lines.append(
            f"{num_blocks['sliding_window']:,} windowed blocks: one window a seat, and prompt "
            f"tokens of one step (max_num_batched_tokens={engine.step_tokens})"
        )
    if engine.speculative_config is not None and not engine.enable_prefix_caching:
        lines.append(f"{kept:,} slots beside the seats' for drafts (speculative_config)")
    if engine.enable_prefix_caching:
        lines.append(
            f"{kept:,} slots beside the seats' for what was computed, and whatever nobody needs at "
            "the moment (enable_prefix_caching)"
        )
    if "full" in num_blocks:
        tokens = (num_blocks["full"] - 1) * size
        lines.append(
            f"{num_blocks['full']:,} full-attention blocks: {tokens:,} tokens for all requests "
            "together; the longest request can have them all"
        )
    else:
        lines.append("no full-attention layer: a request's memory does not grow with its length")
    return (*lines, *narrow_reasons(config, engine, needs), f"{left:,} bytes unused")


def narrow_reasons(config: Plamo2Config, engine: EngineConfig, needs: "Needs") -> tuple[str, ...]:
    """What is kept in another way because it was asked for, in sentences."""
    lines = []
    if engine.state_dtype in BYTES and needs.slot_bytes:
        more = config.state_bytes(0, 4) - config.state_bytes(0, 1)
        lines.append(
            f"a state slot of {needs.slot_bytes:,} bytes: states as {engine.state_dtype}, with a "
            f"scale for each head (state_dtype); {needs.slot_bytes + more:,} in float32"
        )
    if engine.state_replay > 1 and needs.slot_bytes:
        lines.append(
            f"a state is written every {engine.state_replay} tokens (state_replay): its slot of "
            f"{needs.slot_bytes:,} bytes also has the inputs of the tokens since"
        )
    if engine.kv_cache_dtype != "auto":
        blocks = ", ".join(f"{n:,}" for n in needs.block_bytes.values())
        lines.append(
            f"blocks of {blocks} bytes: keys and values as {engine.kv_cache_dtype} (kv_cache_dtype)"
        )
    return tuple(lines)


def paged_reasons(
    engine: EngineConfig, pages: "Pages", seats: int, spare: int, budget: int
) -> tuple[str, ...]:
    """A plan of one arena in sentences."""
    shape, least = pages.shape, pages.least
    names = {"mamba": "state slots", "full": "full-attention blocks"}
    ways = [f"{use.count:,} {names.get(k, 'windowed blocks')}" for k, use in shape.uses.items()]
    kept = [f"{least[k]:,} for {names.get(k, 'windowed blocks')}" for k in shape.uses]
    limit = "max_num_seqs" if seats == engine.seats else "memory"
    left = budget - pages.num_pages * shape.page_bytes
    return (
        f"one arena of {pages.num_pages:,} pages, {shape.page_bytes:,} bytes each: a page is "
        f"{' or '.join(ways)}, in {shape.columns} columns of {shape.column_bytes:,} bytes",
        f"{sum(least.values()):,} pages never change: one request alone must always fit "
        f"({', '.join(kept)}); {spare:,} go where the traffic needs them",
        f"{seats} seats, limited by {limit}: each begins with a place of each kind, and takes more "
        "as it grows",
        f"{left:,} bytes unused",
    )
