"""Read a config.json as layers, bytes and FLOPs.

Invariant: everything shown is in the dictionary that `describe` makes and that --json prints.
Weights are not read: a config.json is enough.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from plamo_ref.commands import _options as options
from plamo_ref.config import ConfigError, LayerKind, Plamo2Config
from plamo_ref.engine.dtypes import DTYPES, torch_dtype
from plamo_ref.intake.json_files import read_object

LENGTHS = (1_000, 10_000, 100_000)
KINDS: Mapping[LayerKind, tuple[str, str]] = {  # letter and colour in the strip
    "mamba": ("M", "cyan"),
    "sliding_window": ("S", "yellow"),
    "full": ("F", "magenta"),
}


def config_path(model: str, revision: str | None, offline: bool) -> Path:
    """The config.json of a model; of a hub id, this one file is fetched and not its weights.

    Raises:
        HubError: there is no such model.
    """
    from huggingface_hub import hf_hub_download

    from plamo_ref.intake.hub import EMBEDDED, HUB_ID, HubError, find

    path = Path(model).expanduser()
    if path.is_file():
        return path
    if model == EMBEDDED or path.is_dir() or not HUB_ID.fullmatch(model):
        return find(model) / "config.json"
    try:
        got = hf_hub_download(model, "config.json", revision=revision, local_files_only=offline)
    except (OSError, ValueError) as error:
        said = str(error).partition("\n")[0]
        raise HubError(f"{model}: config.json cannot be fetched: {said}") from error
    return Path(got)


def stored_weights(path: Path, config: Plamo2Config) -> dict[str, Any]:
    """Bytes of the weights as they are stored: their headers, or else the stated dtype, say.

    Raises:
        CheckpointError: there are weights, but not those that the config calls for.
    """
    from plamo_ref.weights.checkpoint import Checkpoint

    if path.name != "config.json" or not any(path.parent.glob("*.safetensors")):
        data = read_object(path, ConfigError)
        name = data.get("torch_dtype") or data.get("dtype")
        if name not in DTYPES:
            return {"dtype": None, "bytes": None, "source": "config.json names no dtype"}
        nbytes = config.num_parameters * torch_dtype(name).itemsize
        return {"dtype": name, "bytes": nbytes, "source": "dtype in config.json"}
    checkpoint = Checkpoint.open(path.parent)
    names = {str(checkpoint.dtype(n)).removeprefix("torch.") for n in checkpoint.names}
    dtype = ", ".join(sorted(names))
    return {"dtype": dtype, "bytes": checkpoint.nbytes, "source": "safetensors headers"}


def describe(
    config: Plamo2Config, lengths: tuple[int, ...], dtype: str, bandwidth: float
) -> dict[str, Any]:
    """Everything that `info` knows from the config alone.

    Args:
        lengths: sequence lengths in tokens.
        dtype: of weights, keys, values and conv state; the SSM state is float32.
        bandwidth: bytes per second.
    """
    from plamo_ref import budget

    size = torch_dtype(dtype).itemsize
    groups = {
        kind: {
            "layers": list(config.layers_of(kind)),
            "kv_bytes_per_token": config.kv_bytes_per_token(kind, size),
        }
        for kind in KINDS
    }
    return {
        "config": config.to_dict(),
        "layer_kinds": list(config.layer_kinds),
        "parameters": config.num_parameters,
        "parameters_by_part": budget.parameters_by_part(config),
        "dtype": dtype,
        "weight_bytes": config.num_parameters * size,
        "groups": groups,
        "state_bytes": config.state_bytes(size),
        "bandwidth": bandwidth,
        "costs": [
            asdict(budget.cost_at(config, n, itemsize=size, bandwidth=bandwidth)) for n in lengths
        ],
    }


@click.command()
@options.model_options
@click.option("--length", type=click.IntRange(1), help="One more sequence length, in tokens.")
@options.dtype_option("bfloat16", "Of weights and caches when served.")
@click.option(
    "--bandwidth",
    type=click.FloatRange(0, min_open=True),
    default=1000.0,
    show_default=True,
    metavar="GB/S",
    help="Of the memory, for the floor of a decode step.",
)
@click.option(
    "--memory",
    type=options.ByteSize(),
    metavar="SIZE",
    help="Plan the cache of a device with so much memory, as in 24GB.",
)
@click.option("--max-num-seqs", type=click.IntRange(1), help="For --memory; default: by it.")
@click.option(
    "--max-num-batched-tokens", type=click.IntRange(1), help="For --memory; default: by it."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(
    model: str,
    revision: str | None,
    offline: bool,
    length: int | None,
    dtype: str,
    bandwidth: float,
    memory: int | None,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
    as_json: bool,
) -> None:
    """Read a model's config.json as layers, bytes and FLOPs.

    NAME may also be the path of a config.json.
    """
    path = config_path(model, revision, offline)
    config = Plamo2Config.from_file(path)
    lengths = tuple(sorted({*LENGTHS, *([length] if length else [])}))
    facts = {"model": model, "stored": stored_weights(path, config)}
    facts |= describe(config, lengths, dtype, bandwidth * 1e9)
    if memory is not None:
        facts["plan"] = plan(config, memory, dtype, max_num_seqs, max_num_batched_tokens)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        show(facts)


def plan(
    config: Plamo2Config,
    memory: int,
    dtype: str,
    max_num_seqs: int | None,
    max_num_batched_tokens: int | None,
) -> dict[str, Any]:
    """How the engine would divide a device of `memory` bytes, and why.

    Raises:
        EngineError: the model, or one request beside it, does not fit.
    """
    from plamo_ref.engine.config import EngineConfig
    from plamo_ref.engine.memory.card import fit_to_memory
    from plamo_ref.engine.memory.device_bytes import plan_device

    engine = EngineConfig(
        dtype=dtype, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens
    )
    engine, why = fit_to_memory(engine, config, memory, torch_dtype(dtype))
    planned = plan_device(config, engine, memory, torch_dtype(dtype))
    return {
        "memory": memory,
        "budget": planned.budget,
        "blocks": dict(planned.num_blocks),
        "block_bytes": dict(planned.block_bytes),
        "slots": planned.num_slots,
        "slot_bytes": planned.slot_bytes,
        "seats": planned.max_num_seqs,
        "reasons": [*planned.reasons, *why],
    }


def show(facts: Mapping[str, Any]) -> None:
    """The facts as a strip of layers and three tables on stdout."""
    from rich.console import Console, Group
    from rich.text import Text

    from plamo_ref.commands._tables import (
        length_table,
        memory_table,
        parameter_table,
        plan_table,
    )

    strip = Text("layers     ")
    legend = Text("           ")
    for i, kind in enumerate(facts["layer_kinds"]):
        letter, colour = KINDS[kind]
        strip.append(letter, style=f"bold {colour}")
        strip.append(" " if i % 8 == 7 else "")
    for kind, (letter, colour) in KINDS.items():
        count = len(facts["groups"][kind]["layers"])
        legend.append(f"{letter} {kind} ×{count}   ", style=colour)
    tables: tuple[Any, ...] = (parameter_table(facts), memory_table(facts), length_table(facts))
    if "plan" in facts:
        tables = (*tables, plan_table(facts["plan"]), Text("\n".join(facts["plan"]["reasons"])))
    Console(highlight=False).print(Group(strip, legend, "", *tables))
