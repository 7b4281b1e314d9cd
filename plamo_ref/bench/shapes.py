"""Models to measure: a real checkpoint, or the published shapes with random weights.

Invariant: random weights have the shape, dtype and memory of real ones; only the text is noise.
"""

import gc
from dataclasses import replace
from pathlib import Path

import torch

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.build import ModelLoader, build_core
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.source import open_source
from plamo_ref.intake.hub import find
from plamo_ref.weights.random import RandomWeights

SHAPES = {
    "1b": Plamo2Config(
        hidden_size=2048,
        num_hidden_layers=16,
        intermediate_size=8192,
        num_attention_heads=16,
        num_key_value_heads=1,
        mamba_num_heads=32,
        vocab_size=100_000,
    ),
    "8b": Plamo2Config(intermediate_size=16384, vocab_size=100_000),
    "translate": Plamo2Config(
        intermediate_size=16384,
        vocab_size=100_032,
        tie_word_embeddings=False,
        rope_theta=1e6,
        rope_local_theta=1e6,
    ),
}


def open_model(
    model: str | Path, shape: str | None, engine: EngineConfig
) -> tuple[Plamo2Config, ModelLoader]:
    """A checkpoint, or, with `shape`, one of SHAPES with random weights; not yet loaded."""
    if shape is not None:
        config = replace(SHAPES[shape], quantization=engine.quantization)
        return config, RandomWeights(config)
    source = open_source(find(model), *engine.source)
    return source.config, source.load


def open_core(
    model: str | Path, shape: str | None, engine: EngineConfig
) -> tuple[EngineCore, MemoryPlan]:
    """A core for what `open_model` opens."""
    config, load = open_model(model, shape, engine)
    return build_core(config, engine, load)


def free_memory() -> None:
    """Give the device what a core has left that nobody names any more: it is full of circles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
