"""Every knob of the engine, in one frozen place.

Invariant: a config that exists is valid on its own; whether it fits a model and a machine is for
the planner to say. Its values are Python's own, so it can be sent to another process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from plamo_ref.compat import ENGINE, speaks_vllm
from plamo_ref.errors import PlamoRefError
from plamo_ref.kernels.choice import KernelChoice
from plamo_ref.values import (
    Flag,
    Kind,
    Listed,
    NoneFor,
    Number,
    OneOf,
    Seed,
    Text,
    Whole,
    read_fields,
)

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
}


class EngineError(PlamoRefError, ValueError):
    """An engine setting, or a request, that cannot work; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the engine runs. Sizes are in tokens and bytes; names follow vLLM's."""

    load_format: Literal["auto", "dummy"] = "auto"  # dummy: random weights, to measure with
    dtype: str = "auto"  # of weights and activations: auto (bfloat16 on a GPU, else float32)
    device: str = "auto"  # auto (a GPU if there is one), "cpu", "cuda", "cuda:1" …
    block_size: int = 16  # tokens in a KV block
    max_num_seqs: int = 64  # requests that run at the same time
    max_num_batched_tokens: int = 2048  # tokens in a step
    scheduler: Literal["v1", "v0"] = "v1"
    chunk_size: int | None = None  # v0: cut prompts into chunks of this size (None: never cut)
    memory_bytes: int | None = None  # for the cache; None: from gpu_memory_utilization
    gpu_memory_utilization: float = 0.9  # share of the device's memory for weights and cache
    max_model_len: int | None = None  # longest prompt + output; None: the longest that fits
    state_dtype: str = "auto"  # of the SSM state: auto (at least float32, the faithful choice)
    seed: int = 0  # for requests that bring none
    kernels: KernelChoice = "auto"
    compile: Literal["none", "attention", "all"] = "none"  # by torch.compile: which parts of layers
    compile_sizes: Sequence[int] = ()  # numbers of tokens with a graph of their own, as 1 has
    pdl: bool = True  # kernels of a decode step overlap at their ends (on a GPU that can, Hopper)
    overlap: bool | None = (
        None  # launch a step before the last one's tokens are read; None: on a GPU
    )
    cuda_graphs: bool = True  # record decode steps and replay them (on a GPU, Triton kernels)
    graph_tokens: int = 1024  # likewise steps with prompts, of so many tokens at most; 0: none
    precompile: bool = True  # compile kernels in parallel while weights load (as above)
    record: bool = False  # keep a record of every step

    def __post_init__(self) -> None:
        read_fields(self, _KINDS, EngineError)
        if (self.chunk_size or 0) > self.max_num_batched_tokens:
            raise EngineError(
                f"chunk_size ({self.chunk_size}) must not exceed max_num_batched_tokens "
                f"({self.max_num_batched_tokens}): a chunk is computed in one step"
            )
        if self.chunk_size is not None and self.scheduler == "v1":
            raise EngineError(
                "chunk_size belongs to scheduler='v0'; v1 cuts prompts where the token budget ends "
                "(max_num_batched_tokens)"
            )

    def resolve_device(self) -> torch.device:
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

    def resolve_overlap(self, device: torch.device) -> bool:
        return device.type == "cuda" if self.overlap is None else self.overlap

    def resolve_dtype(self, device: torch.device) -> torch.dtype:
        if self.dtype == "auto":
            return torch.bfloat16 if device.type == "cuda" else torch.float32
        return DTYPES[self.dtype]

    def resolve_state_dtype(self, dtype: torch.dtype) -> torch.dtype:
        if self.state_dtype == "auto":
            return torch.promote_types(dtype, torch.float32)
        return DTYPES[self.state_dtype]


@dataclass(frozen=True)
class _Torchs:
    """A name, or torch's own object of that name."""

    kind: Kind

    @property
    def wanted(self) -> str:
        return self.kind.wanted

    def read(self, value: Any) -> Any:
        if isinstance(value, (torch.dtype, torch.device)):
            value = str(value).removeprefix("torch.")
        return self.kind.read(value)


# Which values a field may have. None, where vLLM has it, is our default.
_POSITIVE = Whole("1 or more", least=1)
_DTYPES = ("auto", *DTYPES)
_NO_HALF = " (float16 overflows in this model; a GPU without bfloat16, as the T4, takes float32)"
_KINDS: Mapping[str, Kind] = {
    "load_format": OneOf(("auto", "dummy"), other_names={"safetensors": "auto"}),
    "dtype": _Torchs(OneOf(_DTYPES, _NO_HALF, {"float": "float32"})),
    "device": _Torchs(Text("'auto', 'cpu', 'cuda' or 'cuda:1'")),
    "block_size": NoneFor(_POSITIVE, EngineConfig.block_size),
    "max_num_seqs": NoneFor(_POSITIVE, EngineConfig.max_num_seqs),
    "max_num_batched_tokens": NoneFor(_POSITIVE, EngineConfig.max_num_batched_tokens),
    "scheduler": OneOf(("v1", "v0")),
    "chunk_size": NoneFor(_POSITIVE),
    "memory_bytes": NoneFor(_POSITIVE),
    "gpu_memory_utilization": Number("above 0 and at most 1", lambda x: 0 < x <= 1),
    "max_model_len": NoneFor(_POSITIVE),
    "state_dtype": _Torchs(OneOf(_DTYPES)),
    "seed": NoneFor(Seed(), EngineConfig.seed),
    "kernels": OneOf(get_args(KernelChoice)),
    "compile": OneOf(("none", "attention", "all")),
    "compile_sizes": Listed("numbers of tokens, 1 or more each", _POSITIVE),
    "pdl": Flag(),
    "overlap": NoneFor(Flag()),
    "cuda_graphs": Flag(),
    "graph_tokens": Whole("0 (record decode steps only) or more"),
    "precompile": Flag(),
    "record": Flag(),
}
EngineConfig.__init__ = speaks_vllm(ENGINE, EngineError)(EngineConfig.__init__)  # type: ignore[method-assign]
