"""A checkpoint's generation_config.json: the ids that end a text, and how it likes to be sampled.

Invariant: what it says is possible: ids are those of the vocabulary, and the sampling defaults make
a `SamplingParams`. Both are found out when the folder is opened, not in mid-generation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plamo_ref.config import Plamo2Config
from plamo_ref.intake.checkpoint_files import GENERATION_FILE, CheckpointError
from plamo_ref.intake.config_values import ConfigError, check_ids
from plamo_ref.intake.json_files import is_there, read_object
from plamo_ref.intake.values import shown
from plamo_ref.sampling import SamplingParams
from plamo_ref.sampling.params import SamplingError

# Names in the file → fields of SamplingParams. As in vLLM, do_sample and the rest are not asked.
SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}
COUNTS = ("top_k", "max_new_tokens")
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class GenerationFile:
    """What the file says. Without one, all of it follows from config.json."""

    raw: Mapping[str, Any]
    stop_token_ids: tuple[int, ...]
    sampling: Mapping[str, Any]  # fields of SamplingParams that it sets

    @classmethod
    def read(cls, folder: Path, config: Plamo2Config) -> "GenerationFile":
        """Read the file of a checkpoint, if it has one.

        Raises:
            CheckpointError: it is broken, or names an id or a value that cannot be.
        """
        path = folder / GENERATION_FILE
        raw = read_object(path, CheckpointError) if is_there(path) else {}
        for name in IDS:
            value = raw.get(name)
            try:
                ids = tuple(value) if isinstance(value, list) else value
                check_ids(name, ids, config.vocab_size, several=name == "eos_token_id")
            except ConfigError as error:
                told = str(error).replace("config.json", str(path), 1)
                raise CheckpointError(told) from None
        eos = raw.get("eos_token_id")
        eos = config.eos_token_id if eos is None else eos
        return cls(raw, _ends(eos, config), sampling_defaults(path, raw))

    @classmethod
    def chosen(
        cls, folder: Path, config: Plamo2Config, load_format: str, choice: str
    ) -> "GenerationFile":
        """The file that applies. The names of the choices are vLLM's.

        Args:
            load_format: "dummy": config.json is all there is.
            choice: "auto", the checkpoint's own; "vllm", its ids but no sampling defaults; else
                another folder with such a file.

        Raises:
            CheckpointError: there is no such folder, or its file is broken.
        """
        if choice not in ("auto", "vllm"):
            if not is_there(Path(choice) / GENERATION_FILE):
                raise CheckpointError(
                    f"generation_config={shown(choice)}: expected 'auto', 'vllm', or a folder with "
                    f"{GENERATION_FILE}; found no such file"
                )
            return cls.read(Path(choice), config)
        own = cls.without(config) if load_format == "dummy" else cls.read(folder, config)
        return own if choice == "auto" else replace(own, sampling={})

    @classmethod
    def without(cls, config: Plamo2Config) -> "GenerationFile":
        """What follows from config.json alone."""
        return cls({}, _ends(config.eos_token_id, config), {})


def _ends(eos: Any, config: Plamo2Config) -> tuple[int, ...]:
    """One id, several or none, and the one with which a document begins: base models end a document
    with the beginning of the next."""
    listed = eos if isinstance(eos, list | tuple) else (eos,)
    return tuple(dict.fromkeys(i for i in (*listed, config.bos_token_id) if i is not None))


def sampling_defaults(path: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `SamplingParams` that a generation_config.json sets.

    Raises:
        CheckpointError: a value that cannot be.
    """
    found: dict[str, Any] = {}
    for name, field in SAMPLING.items():
        value: Any = raw.get(name)
        if value is None:
            continue
        kind = int if name in COUNTS else int | float
        if isinstance(value, bool) or not isinstance(value, kind):
            wanted = "an integer" if name in COUNTS else "a number"
            raise CheckpointError(f"{path}: {name} must be {wanted}, not {shown(value)}")
        try:
            SamplingParams(**dict[str, Any]({field: value}))
        except SamplingError as error:
            raise CheckpointError(f"{path}: {name}: {error}") from None
        found[field] = value
    return found
