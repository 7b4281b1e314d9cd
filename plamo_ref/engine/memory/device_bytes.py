"""How many bytes of a device the cache may have.

Invariant: what one step needs beside weights and cache is left free, by a bound.
"""

import torch

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.memory.planner import MemoryPlan, plan_memory

CPU_CACHE_BYTES = 1 << 30  # without memory_bytes on a machine without a GPU


def plan_device(
    config: Plamo2Config, engine: EngineConfig, memory: int, dtype: torch.dtype
) -> MemoryPlan:
    """The plan for a device of `memory` bytes that has nothing else to hold.

    Raises:
        EngineError: the weights, or one request beside them, do not fit.
    """
    weights = config.weight_bytes(dtype.itemsize)
    usable = int(memory * engine.gpu_memory_utilization)
    needed = weights + activation_bytes(engine, config, dtype.itemsize)
    if usable <= needed:
        cure = "lower max_num_batched_tokens or max_num_seqs"
        if usable <= weights:
            cure = "raise gpu_memory_utilization" if weights < memory else "take a larger device"
        raise EngineError(
            f"{usable:,} usable bytes ({engine.gpu_memory_utilization:.0%} of {memory:,}) do not "
            f"hold the weights ({weights:,}) and one step ({needed - weights:,}); {cure}"
        )
    state_dtype = engine.resolve_state_dtype(dtype)
    return plan_memory(config, engine, usable - needed, dtype=dtype, state_dtype=state_dtype)


def cache_budget(
    engine: EngineConfig, device: torch.device, config: Plamo2Config, itemsize: int
) -> int:
    """Bytes for the cache once the weights are on the device."""
    if engine.memory_bytes is not None:
        return engine.memory_bytes
    if device.type != "cuda":
        return CPU_CACHE_BYTES
    free, total = torch.cuda.mem_get_info(device)
    usable = int(total * engine.gpu_memory_utilization) - (total - free)
    return max(0, usable - activation_bytes(engine, config, itemsize))


def activation_bytes(engine: EngineConfig, config: Plamo2Config, itemsize: int) -> int:
    """A bound on what one step needs besides weights and cache: a few of its widest tensors."""
    widest = max(2 * config.intermediate_size, 2 * config.mamba_inner_size, config.q_size)
    hidden = engine.step_tokens * (widest + 4 * config.hidden_size) * itemsize * 3
    logits = engine.seats * config.vocab_size * 4 * 6  # sampling sorts in float64
    return hidden + logits


def has_spare_memory(
    engine: EngineConfig, device: torch.device, config: Plamo2Config, itemsize: int
) -> bool:
    """Whether more than what one step needs is free, so that something may be kept ahead."""
    free, _ = torch.cuda.mem_get_info(device)
    return free > activation_bytes(engine, config, itemsize)
