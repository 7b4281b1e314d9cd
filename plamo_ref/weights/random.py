"""A model whose weights are random numbers: to measure speed and memory, not to read its text.

Invariant: shapes, dtypes and memory are those of the real model; the same seed gives the same
weights.
"""

import torch

from plamo_ref.config import Plamo2Config
from plamo_ref.kernels.table import Kernels
from plamo_ref.model import Plamo2Model
from plamo_ref.weights.loading import build_model

SPREAD = 0.02  # standard deviation: small enough that activations stay finite in bfloat16


def random_model(
    config: Plamo2Config, ops: Kernels, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Plamo2Model:
    """A model with small random weights, made where they stay."""
    generator = torch.Generator(device).manual_seed(seed)

    def read(name: str) -> torch.Tensor:
        tensor = torch.empty(config.tensor_shapes[name], dtype=dtype, device=device)
        return tensor.normal_(0, SPREAD, generator=generator)

    return build_model(config, read, ops)
