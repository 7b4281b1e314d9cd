"""Where an engine's model comes from: a checkpoint, or, to measure with, random numbers.

Invariant: whatever the weights are, the shape and the ids that end a text are the folder's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.build import ModelLoader
from plamo_ref.intake.checkpoint_files import CONFIG_FILE
from plamo_ref.intake.generation_file import GenerationFile
from plamo_ref.kernels.table import Kernels
from plamo_ref.model import Plamo2Model
from plamo_ref.weights.checkpoint import Checkpoint
from plamo_ref.weights.loading import load_model
from plamo_ref.weights.random import random_model


@dataclass(frozen=True)
class ModelSource:
    """A model that has not been loaded yet."""

    folder: Path
    config: Plamo2Config
    stop_token_ids: tuple[int, ...]
    sampling: Mapping[str, Any]  # fields of SamplingParams that its generation_config.json sets
    load: ModelLoader


def open_source(
    folder: str | Path, load_format: str = "auto", generation_config: str = "auto"
) -> ModelSource:
    """The model of `folder`. With `load_format="dummy"` it is what config.json says, and no more.

    Raises:
        CheckpointError, ConfigError: the folder holds no PLaMo 2.
    """
    folder = Path(folder)
    if load_format == "dummy":
        config = Plamo2Config.from_file(folder / CONFIG_FILE)
        load: ModelLoader = partial(random_model, config)
    else:
        checkpoint = Checkpoint.open(folder)
        config, load = checkpoint.config, partial(_stored, checkpoint)
    told = GenerationFile.chosen(folder, config, load_format, generation_config)
    return ModelSource(folder, config, told.stop_token_ids, told.sampling, load)


def _stored(
    checkpoint: Checkpoint, ops: Kernels, dtype: torch.dtype, device: torch.device
) -> Plamo2Model:
    return load_model(checkpoint, ops, dtype=dtype, device=device)
