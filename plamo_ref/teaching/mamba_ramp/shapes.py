"""Arguments for lesson 11's launchers at the shape of PLaMo 2 8B, for the compiler and for a clock.

Invariant: the same shapes wherever they are made: on "meta" they have no content and can only be
compiled, on a GPU they are random. Activations bfloat16, parameters and states float32.
Used by lesson 11 and benchmarks/mamba_ramp.py.
"""

import torch
from torch import Tensor

from plamo_ref.kernels.ssm.twin import ScanInputs, ScanParams

HEADS, SIZE, STATE, TAPS = 64, 128, 64, 4
BF16, F32 = torch.bfloat16, torch.float32


def update_arguments(requests: int, device: str) -> tuple[Tensor, ...]:
    """For `update`: u z dt B C A D bias cache slots y."""
    cache = _draw(requests + 1, HEADS, SIZE, STATE, device=device, dtype=F32)
    slots = torch.arange(1, requests + 1, device=device)
    return *_layer(requests, device), cache, slots, _draw(requests, HEADS, SIZE, device=device)


def scan_arguments(requests: int, tokens: int, device: str) -> tuple[Tensor, ...]:
    """For `scan`: prompts of `tokens` each, half of them with a past."""
    cache = _draw(requests + 1, HEADS, SIZE, STATE, device=device, dtype=F32)
    slots = torch.arange(1, requests + 1, device=device)
    starts = torch.arange(requests + 1, device=device) * tokens
    has_past = (torch.arange(requests, device=device) % 2).to(torch.uint8)
    y = _draw(requests * tokens, HEADS, SIZE, device=device)
    return *_layer(requests * tokens, device), cache, slots, starts, has_past, y


def conv_arguments(requests: int, device: str) -> tuple[Tensor, ...]:
    """For `conv_step`: u weight memory slots out."""
    channels = HEADS * SIZE
    u, out = (_draw(requests, channels, device=device) for _ in range(2))
    weight = _draw(channels, TAPS, device=device)
    memory = _draw(requests + 1, channels, TAPS - 1, device=device)
    return u, weight, memory, torch.arange(1, requests + 1, device=device), out


def for_package(
    arguments: tuple[Tensor, ...],
) -> tuple[ScanInputs, ScanParams, *tuple[Tensor, ...]]:
    """The same tensors as the package's kernels take them; y they make themselves."""
    return ScanInputs(*arguments[:5]), ScanParams(*arguments[5:8]), *arguments[8:-1]


def launch_ours() -> None:
    """All answers, launched on tensors without content: for `compiled`."""
    from plamo_ref.teaching.mamba_ramp import kernels

    def floats(*shape: int) -> Tensor:
        return _draw(*shape, device="meta", dtype=F32)

    slots, cache = torch.empty(8, dtype=torch.int64, device="meta"), floats(9, HEADS, SIZE, STATE)
    x, rates, rows = floats(8, HEADS, SIZE), floats(8, HEADS), floats(8, STATE)
    kernels.decay(rates, floats(HEADS), floats(HEADS), rates, rates)
    kernels.conv_step(*conv_arguments(8, "meta"))
    kernels.head_step(cache[0, 0], x[0, 0], rows[0], rows[0], rates[0, :1], rates[0, :1], x[0, 0])
    kernels.slots_step(x, rows, rows, rates, rates, cache, slots, x)
    kernels.update(*update_arguments(8, "meta"))
    kernels.walk(x, rows, rows, rates, rates, cache[0], x)
    one = floats(16, SIZE)
    kernels.chunk(one, one[:, 0], floats(1), floats(16, STATE), floats(16, STATE), cache[0, 0], one)
    kernels.scan(*scan_arguments(8, 256, "meta"))


def _layer(tokens: int, device: str) -> tuple[Tensor, ...]:
    """u z dt B C A D bias."""
    u, z = (_draw(tokens, HEADS, SIZE, device=device) for _ in range(2))
    dt = _draw(tokens, HEADS, device=device)
    B, C = (_draw(tokens, STATE, device=device) for _ in range(2))
    A, D, bias = (_draw(HEADS, device=device, dtype=F32) for _ in range(3))
    return u, z, dt, B, C, -A.abs() if device != "meta" else A, D, bias


def _draw(*shape: int, device: str, dtype: torch.dtype = BF16) -> Tensor:
    if device == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.randn(shape, dtype=dtype, device=device)
