"""A model whose weights are random numbers: to measure speed and memory, not to read its text.

Invariant: shapes, dtypes and memory are those of the real model; the same seed gives the same
weights.
"""

import os
from dataclasses import dataclass

import torch

from plamo_ref.config import Plamo2Config
from plamo_ref.errors import PlamoRefError
from plamo_ref.kernels.table import Kernels
from plamo_ref.model import Plamo2Model
from plamo_ref.quantization.quantize import stored
from plamo_ref.quantization.schemes import SCHEMES
from plamo_ref.quantization.weight import Weight
from plamo_ref.weights.loading import Reader, build_model

SPREAD = 0.02  # standard deviation: small enough that activations stay finite in bfloat16


class RandomWeightsError(PlamoRefError, ValueError):
    """More weights than there is memory."""


def memory_of(device: torch.device) -> int:
    """All bytes of memory that a device has, free or not."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def random_model(
    config: Plamo2Config, ops: Kernels, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Plamo2Model:
    """A model with small random weights, made where they stay.

    Raises:
        RandomWeightsError: nothing but the device's memory says how many there can be.
    """
    wanted, there = config.weight_bytes(dtype.itemsize), memory_of(device)
    if wanted > there:
        raise RandomWeightsError(
            f"{config.num_parameters:,} random weights need {wanted:,} bytes, but {device} has "
            f"{there:,}: take a smaller shape"
        )
    return build_model(config, random_reader(config, dtype, device, seed), ops)


def random_reader(
    config: Plamo2Config, dtype: torch.dtype, device: torch.device, seed: int
) -> Reader:
    """Draws the tensors in the order in which they are asked for: always ask in the same.

    A product is quantized when it has been drawn, before the next one is.
    """
    generator = torch.Generator(device).manual_seed(seed)
    scheme = SCHEMES[config.quantization] if config.quantization else None

    def read(name: str) -> Weight:
        tensor = torch.empty(config.tensor_shapes[name], dtype=dtype, device=device)
        return stored(tensor.normal_(0, SPREAD, generator=generator), name, scheme)

    return read


@dataclass(frozen=True)
class RandomWeights:
    """A loader of such a model."""

    config: Plamo2Config
    seed: int = 0

    def __call__(self, ops: Kernels, dtype: torch.dtype, device: torch.device) -> Plamo2Model:
        return random_model(self.config, ops, dtype, device, self.seed)
