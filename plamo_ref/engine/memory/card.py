"""Seats and tokens of a step, where nobody has said how many: what the device has room for.

A larger step computes prompts at a better rate and keeps those who decode waiting for longer; a
further seat takes memory that could keep what was computed. Both stop paying, so both have a most.

Invariant: what the settings say stays; the longest request fits as it would with the least of both.
"""

from dataclasses import replace

import torch

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import SEATS, STEP_TOKENS, EngineConfig
from plamo_ref.engine.dtypes import torch_dtype
from plamo_ref.engine.memory.device_bytes import activation_bytes
from plamo_ref.engine.memory.planner import Needs

MOST_SEATS, MOST_STEP_TOKENS = 256, 8192
STEP_SHARE, SEATS_SHARE = 16, 2  # what they take at the most: a 16th, a half of what weights leave


def fit_to_card(
    engine: EngineConfig, config: Plamo2Config, device: torch.device
) -> tuple[EngineConfig, tuple[str, ...]]:
    """The same for a GPU, and for as many as share the model."""
    dtype = engine.resolve_dtype(device)
    return fit_to_memory(engine, config, card_memory(device) * engine.num_ranks, dtype)


def card_memory(device: torch.device) -> int:
    """Bytes of a GPU."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def fit_to_memory(
    engine: EngineConfig, config: Plamo2Config, memory: int, dtype: torch.dtype
) -> tuple[EngineConfig, tuple[str, ...]]:
    """Settings that say how many, for `memory` bytes of all devices together, and why."""
    asked = engine.max_num_seqs, engine.max_num_batched_tokens
    if None not in asked:
        return engine, ()
    spare = int(memory * engine.gpu_memory_utilization) - config.weight_bytes(dtype.itemsize)
    if engine.memory_bytes is not None:
        spare = min(spare, engine.memory_bytes * engine.num_ranks)
    kv = dtype if engine.kv_cache_dtype == "auto" else torch_dtype(engine.kv_cache_dtype)
    kinds = (dtype, engine.resolve_state_dtype(dtype), kv)
    longest, replay = engine.max_model_len, engine.state_replay
    needs = Needs.of(config, engine.block_size, longest, kinds, replay)
    fitted = engine
    for seats in _doubled(SEATS, MOST_SEATS) if asked[0] is None else ():
        if seats * needs.seat_bytes * SEATS_SHARE <= spare:
            fitted = replace(fitted, max_num_seqs=seats)
    for tokens in _doubled(STEP_TOKENS, MOST_STEP_TOKENS) if asked[1] is None else ():
        wider = replace(fitted, max_num_batched_tokens=tokens)
        # Further seats must not make it smaller.
        alone = activation_bytes(replace(wider, max_num_seqs=SEATS), config, dtype.itemsize)
        whole = activation_bytes(wider, config, dtype.itemsize) + needs.first_bytes
        if alone * STEP_SHARE <= spare and whole <= spare:
            fitted = wider
    fitted = replace(fitted, max_num_seqs=fitted.seats, max_num_batched_tokens=fitted.step_tokens)
    names = ("max_num_seqs", "max_num_batched_tokens")
    chosen = [f"{n} = {getattr(fitted, n):,}" for n, a in zip(names, asked, strict=True) if not a]
    return fitted, (
        f"{' and '.join(chosen)} for a memory of {memory:,} bytes, of which weights leave "
        f"{spare:,}: a step takes a {STEP_SHARE}th of that at most, seats a half",
    )


def _doubled(least: int, most: int) -> list[int]:
    """`least`, twice as much, … up to `most`."""
    return [least << n for n in range((most // least).bit_length())]
