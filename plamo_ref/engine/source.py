"""Where an engine's model comes from: a checkpoint, or, to measure with, random numbers.

Invariant: whatever the weights are, the shape and the ids that end a text are the folder's.
"""

from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast

from plamo_ref.checkpoint import Checkpoint
from plamo_ref.checkpoint_files import CONFIG_FILE
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.build import ModelLoader
from plamo_ref.engine.config import EngineError
from plamo_ref.loading import load_model
from plamo_ref.random_weights import random_model
from plamo_ref.values import Flag, NoneFor, Text, read


@dataclass(frozen=True)
class ModelSource:
    """A model that has not been loaded yet."""

    folder: Path
    config: Plamo2Config
    stop_token_ids: tuple[int, ...]
    load: ModelLoader


class _Location:
    """A text or a path. A path stays one: "tiny" is the embedded model, Path("tiny") a folder."""

    wanted = "a text or a path"

    def read(self, value: Any) -> str | Path:
        text = Text().read(fspath(value) if isinstance(value, PathLike) else value)
        return Path(text) if isinstance(value, PathLike) else text


def checked_model(model: Any) -> str | Path:
    """What names a model, for `plamo_ref.hub.find`.

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


def open_source(folder: str | Path, load_format: str = "auto") -> ModelSource:
    """The model of `folder`. With `load_format="dummy"` it needs no weights: config.json is enough.

    Raises:
        CheckpointError, ConfigError: the folder holds no PLaMo 2.
    """
    folder = Path(folder)
    if load_format == "dummy":
        config = Plamo2Config.from_file(folder / CONFIG_FILE)
        stops = () if config.eos_token_id is None else (config.eos_token_id,)
        return ModelSource(folder, config, stops, lambda *place: random_model(config, *place))
    checkpoint = Checkpoint.open(folder)
    return ModelSource(
        folder,
        checkpoint.config,
        checkpoint.stop_token_ids,
        lambda ops, dtype, device: load_model(checkpoint, ops, dtype=dtype, device=device),
    )
