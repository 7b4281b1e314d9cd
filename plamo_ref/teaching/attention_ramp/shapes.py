"""Lesson 10's kernels at the 8B model's shapes: launches to be compiled, and to be timed.

Invariant: a launcher gets here what it gets in the lesson's checks, of a size that a server has.
Tensors of device "meta" have no content: their launches are compiled and do not run.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Launcher = Callable[..., None]
REQUESTS, HEADS, KV_HEADS, SIZE, BLOCK_SIZE, WINDOW = 32, 32, 4, 128, 16, 2048
PARTS = 2


def inputs(device: torch.device | str) -> dict[str, tuple[Tensor | int, ...]]:
    """Launcher → its arguments for 32 decoding requests with 2,101 tokens each, in float32."""

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    def numbers(*shape: int) -> Tensor:
        return zeros(*shape).normal_()

    length = 2101
    width = -(-length // BLOCK_SIZE)
    lens = torch.full((REQUESTS,), length, device=device)
    table = torch.arange(REQUESTS * width, device=device).view(REQUESTS, width)
    keys, values = (numbers(REQUESTS * width, BLOCK_SIZE, KV_HEADS, SIZE) for _ in range(2))
    q, out = numbers(REQUESTS, HEADS, SIZE), zeros(REQUESTS, HEADS, SIZE)
    angles = numbers(2, REQUESTS, SIZE // 2)
    parts = zeros(REQUESTS, HEADS, PARTS, SIZE + 2)
    slots = torch.arange(REQUESTS, device=device) * 16 + 5
    row = numbers(4096)
    paged = (q, keys, values, table, lens, WINDOW)
    return {
        "copy": (row, zeros(4096)),
        "norm": (numbers(REQUESTS, 4096), row, zeros(REQUESTS, 4096)),
        "rotate": (q, numbers(HEADS, SIZE), angles[0], angles[1], out),
        "write": (numbers(REQUESTS, KV_HEADS, SIZE), keys, slots),
        "attend": (numbers(8, SIZE), numbers(2049, SIZE), numbers(2049, SIZE), zeros(8, SIZE)),
        "decode": (*paged, out),
        "split_decode": (*paged, parts, out),
    }


def launch_all(launchers: dict[str, Launcher]) -> None:
    """Launch each on tensors without content: under `compiled` this compiles them."""
    given = inputs("meta")
    for name, launcher in launchers.items():
        launcher(*given[name])


def launch_ours() -> None:
    """`launch_all` of the lesson's own kernels."""
    from plamo_ref.teaching.attention_ramp import kernels

    launch_all({name: getattr(kernels, name) for name in inputs("meta")})
