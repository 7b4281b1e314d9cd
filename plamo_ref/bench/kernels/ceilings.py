"""What this machine can reach at best, measured: bytes copied and products of matrices a second.

    floor = max(bytes / copy rate, operations / product rate)

Invariant: a share of the floor compares two measurements of one process on one device; no data
sheet is involved, and no constant of another machine.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from plamo_ref.kernels.linear.triton_numbers import knows_fp8
from plamo_ref.quantization.weight import FP8

SECONDS = 0.4  # of measuring, for each ceiling
GPU_COPY, CPU_COPY = 1 << 30, 1 << 28  # bytes, far beyond any cache
GPU_SIDE, CPU_SIDE = 8192, 1024  # of the square matrices


@dataclass(frozen=True)
class Ceilings:
    """The best rates of one device."""

    copy: float  # bytes/s, those read and those written
    product: float  # FLOP/s
    copy_of: str
    product_of: str
    fp8_product: float | None = None  # of e4m3; None: nobody asked, or the device has none

    def floor(self, moved_bytes: float, operations: float, in_fp8: float = 0.0) -> float:
        """Seconds that nothing can be faster than which moves and computes so much. Operations in
        e4m3 count where their rate is known."""
        fp8 = in_fp8 / self.fp8_product if self.fp8_product else 0.0
        return max(moved_bytes / self.copy, operations / self.product + fp8)

    def rate(self, moved_bytes: float, operations: float, seconds: float) -> tuple[float, str]:
        """What was reached of the ceiling that binds, with its unit."""
        if moved_bytes / self.copy >= operations / self.product:
            return moved_bytes / seconds / 1e9, "GB/s"
        return operations / seconds / 1e12, "TFLOP/s"

    def row(self) -> dict[str, Any]:
        return {
            "copy_gb_per_s": round(self.copy / 1e9, 1),
            "copy_of": self.copy_of,
            "product_tflop_per_s": round(self.product / 1e12, 3),
            "product_of": self.product_of,
            **({"fp8_tflop_per_s": round(self.fp8_product / 1e12, 3)} if self.fp8_product else {}),
        }


def measure_ceilings(device: torch.device, dtype: torch.dtype, *, fp8: bool = False) -> Ceilings:
    """About a second: a copy within the device's memory, a square product in `dtype`, and with
    `fp8` one in e4m3, where the device has it."""
    on_gpu = device.type == "cuda"
    size, side = (GPU_COPY, GPU_SIDE) if on_gpu else (CPU_COPY, CPU_SIDE)
    kind = str(dtype).removeprefix("torch.")
    return Ceilings(
        copy=_copy_rate(size, device),
        product=_product_rate(side, dtype, device),
        copy_of=f"copy of {size >> 20} MiB, read and written",
        product_of=f"{kind} product of two {side} × {side} matrices",
        fp8_product=_fp8_rate(side, device) if fp8 and on_gpu and knows_fp8(device) else None,
    )


def _copy_rate(size: int, device: torch.device) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source), device, seconds=SECONDS)


def _product_rate(side: int, dtype: torch.dtype, device: torch.device) -> float:
    # Random: on zeros a GPU needs less power, and clocks higher than it ever will on numbers.
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    took = median_seconds(lambda: torch.mm(a, b, out=out), device, seconds=SECONDS)
    return 2 * side**3 / took


def _fp8_rate(side: int, device: torch.device) -> float:
    """As the library multiplies for an engine: a scale for each row of both, bfloat16 out."""
    a, b = (torch.randn(side, side, device=device).to(FP8) for _ in range(2))
    scales = torch.ones(side, 1, device=device)
    row = F.ScalingType.RowWise

    def product() -> object:
        return F.scaled_mm(
            a, b.T, scales, row, scales.T, row, output_dtype=torch.bfloat16, use_fast_accum=True
        )

    took = median_seconds(product, device, seconds=SECONDS)
    return 2 * side**3 / took


def median_seconds(
    call: Callable[[], object],
    device: torch.device,
    *,
    seconds: float = 0.2,
    at_least: int = 3,
    at_most: int = 1000,
) -> float:
    """The median duration of a call, by the device's own clock where it has one."""
    once = _time(call, device, 2)[-1]  # the first call pays for what later ones find ready
    count = min(max(at_least, int(seconds / max(once, 1e-7))), at_most)
    return statistics.median(_time(call, device, count))


def _time(call: Callable[[], object], device: torch.device, count: int) -> list[float]:
    if device.type != "cuda":
        times = [time.perf_counter()]
        for _ in range(count):
            call()
            times.append(time.perf_counter())
        return [after - before for before, after in pairwise(times)]
    with torch.cuda.device(device):
        events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        events[-1].synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]
