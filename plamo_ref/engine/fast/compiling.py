"""torch.compile for the layers: what is not an operation on the cache becomes fused kernels.

Each layer (or, with "attention", each attention mixer) is one graph without a break. Layers of one
kind have the same graph: 32 layers cost two compilations a size, not 32, and weights and caches are
arguments of the graph. A size is a number of tokens; those that are not listed share one graph in
which it is a symbol.

Invariant: a compiled layer computes what the plain one does, from the same code in model.py; after
`warm_up` no step compiles anything, whatever it contains.
Built in notebooks/12_torch_compile_fusion.ipynb.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from types import FunctionType
from typing import Any, Literal

import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch, LayerCache, Room
from plamo_ref.config import LayerKind
from plamo_ref.engine.config import EngineError
from plamo_ref.engine.fast.custom_ops import RING, compiled_table, opaque
from plamo_ref.engine.memory.holding import ATTENTION_KINDS
from plamo_ref.model import Attention, Layer, LayerCall, Plamo2Model, with_ops
from plamo_ref.quantization.weight import Activations

Compile = Literal["none", "attention", "all"]


# --- graphs --------------------------------------------------------------------------------------


class Graphs:
    """The graphs of one function, one for each listed number of tokens and one for all others.

    A graph for 1 token is always there: the compiler takes a size of 1 for a constant.
    """

    def __init__(self, name: str, step: Callable[..., Any], sizes: Iterable[int]) -> None:
        assert isinstance(step, FunctionType)  # plain Python, with code that can be copied
        self._step, self._name = step, name
        self._sized = {size: self._graph(str(size)) for size in {1, *sizes}}
        self._any = self._graph("any")
        self._ready: set[int | None] = set()

    def __call__(self, part: object, x: Tensor, *args: object) -> Any:
        """Run the graph for the tokens of x [T, D]; the first call compiles it."""
        size = x.shape[0]
        graph = self._sized.get(size)
        key = None if graph is None else size
        graph = self._any if graph is None else graph
        if key in self._ready:
            return graph(part, x, *args)
        varying = [*_LENGTHS, *(_TOKENS if key is None else ())]
        settings: Any = torch.compiler.config
        with settings.patch(dynamic_sources=",".join(varying)):
            result = graph(part, x, *args)
        self._ready.add(key)
        return result

    def _graph(self, size: str) -> Callable[..., Any]:
        """The function under a name of its own, compiled.

        The compiler keeps its graphs with the function's code, so a copy of the code is what keeps
        the sizes, and two engines, apart.
        """
        copy = self._step.__code__.replace(co_name=f"{self._name}_{size}")
        function = FunctionType(copy, self._step.__globals__)
        return torch.compile(function, fullgraph=True, dynamic=False)


# What is not the same in every step, by the names that the compiler gives to arguments.
_LENGTHS = (
    "L['batch'].vector",
    # another plan's, say
    *(f"L['cache'].{name}" for name in ("keys", "values", "conv", "ssm", "scales", *RING)),
)
_TOKENS = (
    "L['residual']",
    "L['x']",
    "L['tables']",
    *(f"L['batch'].groups['{kind}'].slot_mapping" for kind in ATTENTION_KINDS),
)


def _layer_step(
    layer: Layer,
    residual: Tensor,
    x: Tensor,
    next_gain: Tensor,
    quantize: bool,
    batch: ForwardBatch,
    cache: LayerCache,
    tables: Tensor,
) -> tuple[Tensor, Activations]:
    return Layer.__call__(layer, residual, x, next_gain, quantize, batch, cache, tables)


def _attention_step(
    mixer: Attention, x: Tensor, batch: ForwardBatch, cache: LayerCache, tables: Tensor
) -> Tensor:
    return Attention.__call__(mixer, x, batch, cache, tables)


# --- the model -----------------------------------------------------------------------------------


def compile_model(model: Plamo2Model, what: Compile, sizes: Sequence[int]) -> Plamo2Model:
    """The model with compiled layers; nothing is compiled yet.

    Args:
        what: "none", "attention" (QK-norm and RoPE fuse) or "all" (whole layers, Mamba's too).
        sizes: numbers of tokens that get a graph of their own.

    Raises:
        EngineError: this machine has no compiler for what would be generated.
    """
    if what == "none":
        return model
    _require_compiler(model.embedding.device)
    ops = compiled_table("torch" if model.ops.name == "torch" else "triton")
    kinds = model.config.layer_kinds
    step = _attention_step if what == "attention" else _layer_step
    graphs = {kind: Graphs(f"{kind}_{what}", step, sizes) for kind in set(kinds)}

    def call(layer: Layer, kind: LayerKind) -> LayerCall:
        fused = with_ops(layer, ops)
        if what == "all":
            return partial(graphs[kind], fused)
        mixer: Any = partial(graphs[kind], fused.mixer)  # called as the mixer is
        return layer if kind == "mamba" else replace(layer, mixer=mixer)

    calls = [call(*each) for each in zip(model.layers, kinds, strict=True)]
    model = copy(model)
    model.compiled = lambda batch: (opaque(batch), calls)
    return model


@torch.inference_mode()
def warm_up(model: Plamo2Model, caches: Sequence[LayerCache], sizes: Sequence[int]) -> None:
    """Compile every graph of a compiled model, by steps over nothing but padding."""
    listed = {1, *sizes}
    unlisted = next(n for n in range(2, len(listed) + 3) if n not in listed)
    widths = tuple((kind, 1) for kind in ATTENTION_KINDS if kind in model.config.layer_kinds)
    for size in (*sorted(listed), unlisted):
        room = Room(size, prompts=0, tokens=0, widths=widths)
        batch = ForwardBatch.empty(room, model.embedding.device)
        model.forward(batch, caches)


def _require_compiler(device: torch.device) -> None:
    if device.type != "cpu":
        return
    wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(wanted) is None:
        raise EngineError(
            f"compile needs a C++ compiler on a CPU, and {wanted!r} was not found: install one, "
            'name it in the environment variable CXX, or use compile="none"'
        )
