"""What cases for the kernels are made of: shapes of models, one call, tensors of one seed.

Invariant: two makers with one seed make the same numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that kernels see."""

    name: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    size: int  # of a head
    mamba_heads: int
    state: int
    window: int
    taps: int = 4
    block_size: int = 16
    vocabulary: int = 100_000


MODELS = (
    Shape("8B", 4096, 16384, 32, 4, 128, 64, 64, 2048),
    Shape("1B", 2048, 8192, 16, 1, 128, 32, 64, 2048),
)
# Powers of two and not, one KV head and as many as query heads, every published head size.
SMALL = (
    Shape("a", 64, 96, 4, 2, 16, 2, 8, 6, taps=4, block_size=4),
    Shape("b", 72, 40, 3, 1, 32, 3, 24, 5, taps=2, block_size=3),
    Shape("c", 33, 17, 8, 1, 16, 1, 16, 70, taps=3, block_size=16),
    Shape("d", 128, 130, 2, 2, 128, 1, 32, 8, taps=4, block_size=5),
    Shape("e", 40, 24, 10, 2, 24, 2, 64, 1, taps=5, block_size=1),
)


@dataclass(frozen=True)
class Case:
    """One call of an operation of the table."""

    name: str
    operation: str
    arguments: tuple[Any, ...]
    written: tuple[int, ...] = ()  # places of the arguments that it changes
    moved_bytes: int = 0  # through the device's memory, at the least
    operations: int = 0  # multiplications and additions in products of matrices


class Maker:
    """Makes tensors of one dtype on one device."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(seed)

    def noise(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        wide = torch.randn(shape, generator=self.generator, device=self.device)
        return wide.to(dtype or self.dtype)

    def parts(self, count: int, *shape: int) -> Tensor:
        """Partial sums, which come in at least float32."""
        return self.noise(count, *shape, dtype=torch.promote_types(self.dtype, torch.float32))

    def nan(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.full(shape, math.nan, dtype=dtype or self.dtype, device=self.device)

    def ints(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def shuffled(self, count: int) -> Tensor:
        """1 … count in a random order; 0 is the null place."""
        return torch.randperm(count, generator=self.generator, device=self.device) + 1
