"""The language model inside a vision-language checkpoint: its part of config.json and tensors.

What the rest would do is turn a picture into embeddings, and no prompt here has a picture.

Invariant: a checkpoint of a language model alone passes unchanged.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from plamo_ref.intake.config_values import TOKEN_IDS, ConfigError
from plamo_ref.intake.values import shown

T = TypeVar("T")
MODEL_TYPE, CONFIG = "plamo2vl", "text_config"
TOWER = ("vision_model.", "image_proj.")  # what the names of the other tensors begin with
PREFIX = "language_model."  # before all the rest, as some write them
WHOLE = (*TOKEN_IDS, "quantization", "quantization_config")  # said of it all, if not inside


def language_config(data: Any, where: str) -> Mapping[str, Any]:
    """What a parsed config.json says of the language model.

    Raises:
        ConfigError: it is no object, or the one inside is none.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected a JSON object, found {type(data).__name__}")
    if data.get("model_type") != MODEL_TYPE:
        return data
    inner = data.get(CONFIG)
    if inner is None:  # the keys stand beside the others; `architectures` is the whole model's
        return {k: v for k, v in data.items() if k != "architectures"} | {"model_type": "plamo2"}
    if not isinstance(inner, Mapping):
        raise ConfigError(f"{where}: {CONFIG} must be an object, not {shown(inner)}")
    return {k: data[k] for k in WHOLE if k in data} | dict(inner) | {"model_type": "plamo2"}


def language_part(tensors: Mapping[str, T]) -> dict[str, T]:
    """What there is of the language model, by its plain names."""
    kept = {name: what for name, what in tensors.items() if not name.startswith(TOWER)}
    return {name.removeprefix(PREFIX): what for name, what in kept.items()}
