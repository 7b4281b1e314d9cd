"""Where an engine's model comes from: a checkpoint, or, to measure with, random numbers.

Invariant: whatever the weights are, the shape and the ids that end a text are the folder's.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast

import torch

from plamo_ref.config import Plamo2Config
from plamo_ref.engine.build import ModelLoader
from plamo_ref.engine.config import EngineError
from plamo_ref.intake.checkpoint_files import CONFIG_FILE
from plamo_ref.intake.generation_file import GenerationFile
from plamo_ref.intake.values import Flag, NoneFor, Text, read
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


class _Location:
    """A text or a path. A path stays one: "tiny" is the embedded model, Path("tiny") a folder."""

    wanted = "a text or a path"

    def read(self, value: Any) -> str | Path:
        text = Text().read(fspath(value) if isinstance(value, PathLike) else value)
        return Path(text) if isinstance(value, PathLike) else text


def checked_model(model: Any) -> str | Path:
    """What names a model, for `plamo_ref.intake.hub.find`.

    Raises:
        EngineError: it is neither a text nor a path.
    """
    return cast(str | Path, read(EngineError, "model", model, _Location()))


def checked_source(*, revision: Any, cache_dir: Any, offline: Any) -> dict[str, Any]:
    """Where to look for it, likewise.

    Raises:
        EngineError: an argument of another type.
    """
    return {
        "revision": read(EngineError, "revision", revision, NoneFor(Text())),
        "cache_dir": read(EngineError, "cache_dir", cache_dir, NoneFor(_Location())),
        "offline": read(EngineError, "offline", offline, Flag()),
    }


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
        load: ModelLoader = partial(_random, config)
    else:
        checkpoint = Checkpoint.open(folder)
        config, load = checkpoint.config, partial(_stored, checkpoint)
    told = GenerationFile.chosen(folder, config, load_format, generation_config)
    return ModelSource(folder, config, told.stop_token_ids, told.sampling, load)


def _stored(
    checkpoint: Checkpoint, ops: Kernels, dtype: torch.dtype, device: torch.device
) -> Plamo2Model:
    return load_model(checkpoint, ops, dtype=dtype, device=device)


def _random(
    config: Plamo2Config, ops: Kernels, dtype: torch.dtype, device: torch.device
) -> Plamo2Model:
    """Random weights: nothing but the device's memory says how many there can be."""
    wanted, there = config.num_parameters * dtype.itemsize, memory_of(device)
    if wanted > there:
        raise EngineError(
            f"load_format='dummy': {config.num_parameters:,} random weights need {wanted:,} bytes, "
            f"but {device} has {there:,}"
        )
    return random_model(config, ops, dtype, device)


def memory_of(device: torch.device) -> int:
    """All bytes of memory that a device has, free or not."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
