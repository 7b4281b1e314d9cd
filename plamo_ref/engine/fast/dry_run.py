"""The engine's steps over tensors without content, so that every kernel can be compiled early.

Invariant: the model, the runner and the batches are the engine's own, on torch's "meta" device:
which kernels a step launches, and in which variants, is decided by the code that decides it later.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch, Room
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.fast.graphs import LADDER, table_widths
from plamo_ref.engine.memory.planner import MemoryPlan, plan_memory
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.kernels.sample.twin import KNOBS
from plamo_ref.kernels.table import Kernels
from plamo_ref.quantization.quantize import stored
from plamo_ref.quantization.schemes import SCHEMES
from plamo_ref.weights.loading import build_model

META = torch.device("meta")
AMPLE = 1 << 50  # bytes that nobody allocates


def dry_run(
    config: Plamo2Config,
    engine: EngineConfig,
    ops: Kernels,
    dtype: torch.dtype,
    state_dtype: torch.dtype,
) -> None:
    """Launch what an engine with these settings launches: decode steps, prompts, sampling."""
    config = shortened(config)
    shapes = config.tensor_shapes
    scheme = SCHEMES[config.quantization] if config.quantization else None
    model = build_model(
        config, lambda name: stored(_empty(*shapes[name], dtype=dtype), name, scheme), ops
    )
    plan = plan_memory(config, engine, AMPLE, dtype=dtype, state_dtype=state_dtype)
    runner = ModelRunner(model, plan, state_dtype)
    for room in rooms(engine, plan):
        batch = ForwardBatch.empty(room, META)
        logits = runner.run(batch, slice(0, room.num_requests))
        knobs = _empty(logits.shape[0], len(KNOBS), dtype=torch.float64)
        ops.argmax(logits)
        for truncated in (False, True):
            ops.sample(logits, knobs, truncated)


def shortened(config: Plamo2Config) -> Plamo2Config:
    """The same model with only as many layers as have all its kinds: more launch nothing new."""
    kinds, total = config.layer_kinds, config.num_hidden_layers
    for count in range(1, total):
        full = tuple(i for i in config.full_attention_idx if i < count)
        short = replace(config, num_hidden_layers=count, full_attention_idx=full)
        if short.layer_kinds == kinds[:count] and set(short.layer_kinds) == set(kinds):
            return short
    return config


def rooms(engine: EngineConfig, plan: MemoryPlan) -> Iterator[Room]:
    """Decode steps on every rung of the ladder, then prompts, from the usual to the rare.

    Kernels come in variants by number of requests, number of tokens and width of the block table;
    steps by factors of two pass through all of them.
    """
    widths, most = table_widths(plan), engine.seats
    for rows in [n for n in LADDER if n < most] + [most]:
        yield Room(rows, 0, 0, widths)
    photographs = int(bool(engine.enable_prefix_caching) and engine.photographs)
    for tokens in _powers(engine.step_tokens):
        yield Room(0, 1, tokens, widths, photographs)
    for width in _powers(max((n for _, n in widths), default=1)):
        yield Room(1, 0, 0, tuple((kind, min(width, n)) for kind, n in widths))


def _powers(most: int) -> list[int]:
    """`most` and the powers of two below it, the largest first."""
    return [most, *(1 << n for n in reversed(range((most - 1).bit_length())))]


def _empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)
