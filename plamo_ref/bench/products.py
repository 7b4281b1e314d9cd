"""The products with the weights alone: what a step costs in which nothing else happens.

Invariant: every projection of the model once, with the library's own product, or the engine's if
the weight is quantized; for a few tokens on a GPU in one recorded graph, so that no launch is
waited for. It is a comparison, not a floor: an
engine whose own products are faster than the library's can be below it.
"""

from collections.abc import Iterator
from dataclasses import fields

import torch
import torch.nn.functional as F

from plamo_ref.bench.kernels.ceilings import median_seconds
from plamo_ref.kernels.ssm.selection import SelectionParams
from plamo_ref.linear import Linear
from plamo_ref.model import Plamo2Model
from plamo_ref.quantization.weight import QuantizedWeight, Weight


def projections(model: Plamo2Model) -> Iterator[Weight]:
    """The weights [out, in] of all layers, in the order of a step, without the last one."""
    for layer in model.layers:
        for part in (layer.mixer, layer):
            values = [getattr(part, field.name) for field in fields(part)]
            yield from (value.weight for value in values if isinstance(value, Linear))
            yield from (v.dt_weight for v in values if isinstance(v, SelectionParams))


@torch.inference_mode()
def time_products(model: Plamo2Model, tokens: int, *, head: bool) -> float:
    """Seconds for the products of a step with so many tokens; `head`: logits of each of them."""
    weights = list(projections(model)) + ([model.lm_head.weight] if head else [])
    device, dtype = model.embedding.device, model.embedding.dtype
    widths = {weight.shape[1] for weight in weights}
    inputs = {n: torch.randn(tokens, n, device=device).to(dtype) for n in widths}

    def step() -> None:
        for weight in weights:
            x = inputs[weight.shape[1]]
            if isinstance(weight, QuantizedWeight):
                Linear(weight, model.ops)(x)
            else:
                F.linear(x, weight)

    if device.type != "cuda" or not head:
        return median_seconds(step, device)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        step()  # lets the library choose and allocate before anything is recorded
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return median_seconds(graph.replay, device)
