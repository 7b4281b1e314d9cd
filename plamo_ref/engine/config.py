"""Every knob of the engine, in one frozen place.

Invariant: a config that exists is valid on its own; whether it fits a model and a machine is for
the planner to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from plamo_ref.errors import PlamoRefError
from plamo_ref.kernels.choice import KernelChoice

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
        for name in ("block_size", "max_num_seqs", "max_num_batched_tokens"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        for name in ("chunk_size", "memory_bytes", "max_model_len"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "1 or more, or None")
        tokens = self.graph_tokens
        _require(tokens >= 0, "graph_tokens", tokens, "0 (record decode steps only) or more")
        share = self.gpu_memory_utilization
        _require(0 < share <= 1, "gpu_memory_utilization", share, "above 0 and at most 1")
        _require(self.scheduler in ("v0", "v1"), "scheduler", self.scheduler, '"v1" or "v0"')
        parts = ("none", "attention", "all")
        _require(self.compile in parts, "compile", self.compile, f"one of {parts}")
        sizes = all(isinstance(n, int) and n >= 1 for n in self.compile_sizes)
        _require(sizes, "compile_sizes", self.compile_sizes, "numbers of tokens, 1 or more each")
        formats = ("auto", "dummy")
        _require(self.load_format in formats, "load_format", self.load_format, f"one of {formats}")
        dtypes = ("auto", *DTYPES)
        hint = " (float16 overflows in this model)"
        _require(self.dtype in dtypes, "dtype", self.dtype, f"one of {dtypes}{hint}")
        _require(self.state_dtype in dtypes, "state_dtype", self.state_dtype, f"one of {dtypes}")
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
        if device.type == "cuda" and not torch.cuda.is_available():
            raise EngineError(f"device={self.device!r}: no CUDA GPU can be used; try device='cpu'")
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


def _require(ok: bool, name: str, value: object, wanted: str) -> None:
    if not ok:
        raise EngineError(f"{name} must be {wanted}, not {value!r}")
