"""Where an engine's model comes from: a checkpoint, or, to measure with, random numbers.

Invariant: whatever the weights are, the shape and the ids that end a text are the folder's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.build import ModelLoader
from plamo_ref.intake.checkpoint_files import CONFIG_FILE
from plamo_ref.intake.generation_file import GenerationFile
from plamo_ref.weights.checkpoint import Checkpoint
from plamo_ref.weights.loading import StoredWeights
from plamo_ref.weights.random import RandomWeights


@dataclass(frozen=True)
class ModelSource:
    """A model that has not been loaded yet."""

    folder: Path
    config: Plamo2Config
    stop_token_ids: tuple[int, ...]
    sampling: Mapping[str, Any]  # fields of SamplingParams that its generation_config.json sets
    load: ModelLoader


def open_source(
    folder: str | Path,
    load_format: str = "auto",
    generation_config: str = "auto",
    quantization: str | None = None,
) -> ModelSource:
    """The model of `folder`. With `load_format="dummy"` it is what config.json says, and no more.

    Args:
        quantization: a scheme by which products are stored when they have been read.

    Raises:
        CheckpointError, ConfigError: the folder holds no PLaMo 2.
    """
    folder = Path(folder)
    if load_format == "dummy":
        config = Plamo2Config.from_file(folder / CONFIG_FILE)
        config = replace(config, quantization=quantization)
        load: ModelLoader = RandomWeights(config)
    else:
        checkpoint = Checkpoint.open(folder)
        load = StoredWeights(checkpoint, quantization)
        config = load.config
    told = GenerationFile.chosen(folder, config, load_format, generation_config)
    return ModelSource(folder, config, told.stop_token_ids, told.sampling, load)
