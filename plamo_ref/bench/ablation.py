"""What each optimisation buys: a decode step with it switched off alone.

Invariant: all rows share one set of weights and one process, and differ from the first row in what
their name says and nothing else.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch

from plamo_ref.bench.shapes import free_memory
from plamo_ref.bench.steps import step_seconds
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.build import ModelLoader, build_core
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.kernels.choice import TORCH
from plamo_ref.kernels.table import Kernels
from plamo_ref.model import Plamo2Model


@dataclass(frozen=True)
class Ablation:
    """One thing switched off: by a setting of the engine, or by a twin in place of a kernel."""

    name: str
    instead: str  # what then happens
    engine: Mapping[str, Any] = field(default_factory=dict)
    twins: tuple[str, ...] = ()  # operations of the table; their twins must not ask the device
    gpu: bool = True  # it makes no difference on a CPU


NOTHING = Ablation("nothing", "everything is on", gpu=False)
ABLATIONS = (
    Ablation("graphs", "each kernel is launched from Python", {"cuda_graphs": False}),
    Ablation("overlap", "a step waits for the last one's tokens", {"overlap": False}),
    Ablation("pdl", "a kernel starts when the last one has ended", {"pdl": False}),
    Ablation(
        "products",
        "the library's products, SwiGLU apart",
        twins=("linear", "linear_parts", "linear_swiglu"),
    ),
    Ablation("swiglu", "SwiGLU apart from its product", twins=("linear_swiglu",)),
    Ablation("qk", "QK-norm, RoPE and KV write apart", twins=("qk_norm_rope_write",)),
    Ablation("norms", "addition and the two norms apart", twins=("add_norm",)),
    Ablation("selection", "norms of B, C and dt, and dt's product, apart", twins=("selection",)),
    Ablation("conv", "the convolution's step in torch", twins=("conv_update",)),
    Ablation("state", "the recurrence's step in torch", twins=("state_update",)),
    Ablation("sample", "the choice of tokens in torch", twins=("argmax", "sample")),
    Ablation("fusion", "torch, but for what touches the cache", {"kernels": "cache"}),
    Ablation(
        "attention-fusion",
        "torch.compile fuses the attention layers alone, as vLLM V0 did",
        {"kernels": "cache", "compile": "attention"},
    ),
    Ablation(
        "own-fusion",
        "torch.compile fuses, but for what touches the cache",
        {"kernels": "cache", "compile": "all"},
    ),
    Ablation(
        "float32-state", "the state is kept in bfloat16", {"state_dtype": "bfloat16"}, gpu=False
    ),
)


def chosen(names: Sequence[str], device: torch.device) -> list[Ablation]:
    """The rows to measure, the full engine first.

    Args:
        names: of ABLATIONS; empty: all that make a difference on `device`.

    Raises:
        EngineError: an unknown name, or one that is about GPUs where there is none.
    """
    known = {row.name: row for row in ABLATIONS}
    for name in names:
        if name not in known:
            raise EngineError(f"ablation {name!r} is not known; there are: {', '.join(known)}")
        if known[name].gpu and device.type != "cuda":
            raise EngineError(f"ablation {name!r} needs a CUDA GPU; the device is {str(device)!r}")
    on_gpu = device.type == "cuda"
    rows = [known[n] for n in names] or [r for r in ABLATIONS if on_gpu or not r.gpu]
    return [NOTHING, *rows]


def ablate(
    config: Plamo2Config,
    engine: EngineConfig,
    load: ModelLoader,
    ablations: Sequence[Ablation],
    batches: Sequence[int],
    *,
    prompt: int,
    output: int,
    repeat: int,
) -> Iterator[dict[str, Any]]:
    """A row for each ablation and batch; `buys` is against the first ablation."""
    weights = Weights(load)
    full: dict[int, float] = {}
    for ablation in ablations:
        settings = replace(engine, **ablation.engine)
        weights.twins = ablation.twins
        core, _ = build_core(config, settings, weights)
        for batch in batches:
            runs = step_seconds(core, batch, prompt, output, repeat)
            step, spread = median(runs), max(runs) - min(runs)
            base = full.setdefault(batch, step)
            yield {
                "off": ablation.name,
                "instead": ablation.instead,
                "batch": batch,
                "step_ms": round(step * 1e3, 3),
                "spread_ms": round(spread * 1e3, 3),
                "buys_ms": round((step - base) * 1e3, 3),
                "buys_percent": round(100 * (step / base - 1), 1),
                "runs_ms": [round(run * 1e3, 3) for run in runs],
            }
        del core  # its memory is the next one's
        free_memory()


class Weights:
    """A loader that loads once and then lends the same weights to one model after another."""

    def __init__(self, load: ModelLoader) -> None:
        self.load, self.twins = load, ()  # type: ModelLoader, tuple[str, ...]
        self._loaded: Plamo2Model | None = None

    def __call__(self, ops: Kernels, dtype: torch.dtype, device: torch.device) -> Plamo2Model:
        if self._loaded is None:
            self._loaded = self.load(ops, dtype, device)
        return self._loaded.with_ops(with_twins(ops, self.twins))


def with_twins(ops: Kernels, names: Sequence[str]) -> Kernels:
    """The table with some operations in torch. It keeps its name: a step can still be recorded."""
    return ops.but(**{name: getattr(TORCH, name) for name in names})
