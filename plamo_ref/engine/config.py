"""Every knob of the engine, in one frozen place.

Invariant: a config that exists is valid on its own; whether it fits a model and a machine is for
the planner to say. Its values are Python's own, so it can be sent to another process.

A field is declared once: its type, default and `--help` are the options of the commands
(plamo_ref/commands/_engine_options.py), which must not wait for torch: nothing here does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from plamo_ref.engine.dtypes import BYTES, DTYPES, torch_dtype
from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.engine_pairs import check_together
from plamo_ref.intake.engine_values import engine_kinds
from plamo_ref.intake.values import Kind, OneOf, read_fields, shown
from plamo_ref.intake.vllm_names import ENGINE, speaks_vllm
from plamo_ref.kernels.names import KernelChoice
from plamo_ref.quantization.schemes import SCHEMES

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
SEATS, STEP_TOKENS = 64, 2048  # unless the settings or a card say something else
MOST_DRAFTS = 32  # requests of a step that have one


class EngineError(PlamoRefError, ValueError):
    """An engine setting, or a request, that cannot work; the message says what to change."""


def knob(default: T, text: str, *, choices: Sequence[str] = (), unit: str = "") -> T:
    """A field, with what `--help` says of it; `unit` is "bytes" where 2GiB may be written."""
    said = {"help": text, "choices": tuple(choices), "unit": unit}
    return field(default=default, metadata=said)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the engine runs. Sizes are in tokens and bytes; vLLM's names are taken too."""

    load_format: Literal["auto", "dummy"] = knob(
        "auto", "dummy: random weights, to measure with; the folder needs no others."
    )
    dtype: str = knob(
        "auto",
        "Of weights and activations; auto: bfloat16 on a GPU, else float32.",
        choices=("auto", *DTYPES),
    )
    quantization: str | None = knob(
        None, "Store products in fewer bytes; default: as the folder does.", choices=tuple(SCHEMES)
    )
    device: str = knob("auto", "cpu, cuda, cuda:1 …; auto: a GPU if there is one.")
    tensor_parallel_size: int = knob(1, "Processes, each with a GPU, that share the model's heads.")
    pipeline_parallel_size: int = knob(1, "Groups of them, in a row, that share its layers.")
    disable_custom_all_reduce: bool = knob(True, "Off: kernels add what ranks have (GPUs).")
    data_parallel_size: int = knob(1, "Copies of all that, on Ray, which share the requests.")
    block_size: int = knob(16, "Tokens in a KV block.")
    max_num_seqs: int | None = knob(
        None, "Requests that run at the same time; default: 64, on a GPU by its memory."
    )
    max_num_batched_tokens: int | None = knob(
        None, "Tokens in a step; default: 2048, on a GPU by its memory."
    )
    max_step_time_ms: float | None = knob(
        None, "So much of a prompt in a step that others get their next token in time."
    )
    scheduler: Literal["v1", "v0"] = knob("v1", "v1: mixed steps; v0: prompts first.")
    chunk_size: int | None = knob(
        None, "v0: cut prompts into chunks of this many tokens; default: never cut."
    )
    memory_bytes: int | None = knob(
        None, "For the cache, of each GPU; default: from gpu_memory_utilization.", unit="bytes"
    )
    gpu_memory_utilization: float = knob(0.9, "Share of the device's memory for weights and cache.")
    max_model_len: int | None = knob(
        None, "Longest prompt and output together; default: what model and memory allow."
    )
    state_dtype: str = knob(
        "auto",
        "Of the SSM state; auto: at least float32, the faithful choice.",
        choices=("auto", *DTYPES, *BYTES),
    )
    kv_cache_dtype: Literal["auto", "fp8"] = knob(
        "auto", "Of keys and values; auto: the model's; fp8: e4m3, without a scale."
    )
    state_rounding: Literal["nearest", "stochastic"] = knob(
        "nearest", "stochastic: by chance, so that the errors of many steps are 0 on average."
    )
    state_replay: int = knob(
        1, "Tokens until the SSM state is written; their inputs are kept, and replayed."
    )
    generation_config: str = knob(
        "auto", "Sampling defaults; auto: the folder's; vllm: neutral ones; else another folder."
    )
    seed: int = knob(0, "For requests that bring none.")
    kernels: KernelChoice = knob(  # noqa: RUF009
        "auto", "cache: Triton for what touches the cache, torch for the rest."
    )
    compile: Literal["none", "attention", "all"] = knob(
        "none", "Parts of each layer that torch.compile fuses."
    )
    compile_sizes: Sequence[int] = knob(
        (), "Numbers of tokens that get a graph of their own, as 1 has."
    )
    pdl: bool = knob(
        True, "Kernels of a decode step overlap at their ends (on a GPU that can, Hopper)."
    )
    overlap: bool | None = knob(None, "Launch a step before the last is read; default: on a GPU.")
    adjust_tables: bool = knob(
        True, "Keep what penalties and biases look at in tables on the device."
    )
    cuda_graphs: bool = knob(
        True, "Record decode steps and replay them (on a GPU, Triton kernels)."
    )
    graph_tokens: int = knob(
        1024, "Steps with so many prompt tokens at most are recorded too; 0: decode steps only."
    )
    warm_up_seconds: float = knob(
        10.0, "So long at most a server records steps before it is ready; the rest when idle."
    )
    precompile: bool = knob(
        True, "Compile kernels in parallel while weights load (on a GPU, Triton kernels)."
    )
    enable_prefix_caching: bool | None = knob(
        None, "Keep what was computed, for whoever begins alike; default: on a GPU."
    )
    one_arena: bool = knob(
        False, "Memory flows between states and keys as the traffic needs it; off: two rooms."
    )
    photographs: bool = knob(
        True, "Keep states from the middle of a prompt without cutting it there."
    )
    photograph_interval: int = knob(
        512, "Tokens between states that are kept in slots of no other use; 0: none are."
    )
    speculative_config: Mapping[str, Any] | None = knob(
        None,
        'Draft tokens from the text so far, as {"method": "ngram"}; default: none.',
        unit="json",
    )
    record: bool | str | None = knob(None, "A file for every step, to be replayed.", unit="file")

    def __post_init__(self) -> None:
        read_fields(self, _KINDS, EngineError)
        check_together(self, BYTES, EngineError)

    @property
    def seats(self) -> int:
        """Requests that run at the same time, as far as is known without a device."""
        return self.max_num_seqs or SEATS

    @property
    def step_tokens(self) -> int:
        """Tokens of a step at the most, likewise."""
        return self.max_num_batched_tokens or STEP_TOKENS

    @property
    def num_ranks(self) -> int:
        """Processes that share the model."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def source(self) -> tuple[str, str, str | None]:
        """What `open_source` takes besides a folder."""
        return self.load_format, self.generation_config, self.quantization

    @classmethod
    def of(cls, config: "EngineConfig | None", fields: Mapping[str, Any]) -> "EngineConfig":
        """Settings that are given as one object, or one by one.

        Raises:
            EngineError: both at once, or a value is wrong.
        """
        if config is None:
            return cls(**fields)
        if not isinstance(config, cls):
            raise EngineError(f"config={shown(config)}: give an EngineConfig, or its fields")
        if fields:
            raise EngineError(f"config is given, and {', '.join(fields)} too: give one of them")
        return config

    def resolve_device(self) -> "torch.device":
        import torch

        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise EngineError(f"device={self.device!r} is not a device; try 'cpu'") from None
        if device.type not in ("cpu", "cuda"):
            raise EngineError(f"device={self.device!r}: this engine runs on 'cpu' or 'cuda'")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise EngineError(f"device={self.device!r}: no CUDA GPU can be used; try device='cpu'")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            raise EngineError(f"device={self.device!r}: there are {count}, counted from 0")
        return device

    def resolve_overlap(self, device: "torch.device") -> bool:
        return device.type == "cuda" if self.overlap is None else self.overlap

    def resolve_prefix_caching(self, device: "torch.device") -> bool:
        on = self.enable_prefix_caching
        return device.type == "cuda" if on is None else on

    def resolve_dtype(self, device: "torch.device") -> "torch.dtype":
        if self.dtype == "auto":
            return torch_dtype("bfloat16" if device.type == "cuda" else "float32")
        return torch_dtype(self.dtype)

    def resolve_state_dtype(self, dtype: "torch.dtype") -> "torch.dtype":
        import torch

        if self.state_dtype == "auto":
            return torch.promote_types(dtype, torch.float32)
        return torch_dtype(self.state_dtype)


_KINDS: dict[str, Kind] = {
    **engine_kinds(EngineConfig, DTYPES, BYTES),
    "kernels": OneOf(get_args(KernelChoice)),
}
EngineConfig.__init__ = speaks_vllm(ENGINE, EngineError)(EngineConfig.__init__)  # type: ignore[method-assign]
