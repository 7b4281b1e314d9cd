# mypy: disallow-untyped-defs=False
"""What the Triton kernels share: the launch, the precision of products, the search of a request.

Invariant: no launcher looks at the values of a tensor, only at shapes: a launch never makes the
host wait for the device, and a step with fixed shapes can be recorded as a CUDA graph.

Kernels read whatever dtype their tensors have and compute in float32.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """One row of a kernel's table of configurations."""

    up_to: int  # the row is for sizes up to this one; what "size" is, the table says
    block: int  # elements (or tokens) of one program
    warps: int
    stages: int = 1  # loop iterations whose loads are in flight at once
    tile: int = 0  # tokens of one loop iteration, where there is a loop
    programs: int = 256  # wanted in all, where several share a row: two for each multiprocessor
    slices: int = 0  # warps that have columns of their own; 0: they have rows


def pick(table: tuple[Config, ...], size: int) -> Config:
    """The first row that covers `size`, else the last. Plain tables start fast: a tuner would
    spend the first requests' time, and every new shape's."""
    return next((row for row in table if size <= row.up_to), table[-1])


def launch(
    kernel: Any, grid: tuple[int, ...], *args: Any, config: Config, **constants: object
) -> None:
    """Run `kernel` on the device of its first tensor; a grid without programs is left out.

    On tensors without content there is nothing to run: the kernel is compiled.
    """
    if 0 in grid:
        return
    tensor = next(arg for arg in args if isinstance(arg, Tensor))
    # Triton launches on the current device, which need not be the tensors' own.
    with torch.cuda.device_of(tensor):
        # x · y + z rounded once: said outright, since Triton's default differs between versions.
        options = {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}
        if constants.get("PDL"):
            options["launch_pdl"] = True
        if tensor.is_meta:
            kernel.warmup(*args, grid=grid, **constants, **options)
        else:
            kernel[grid](*args, **constants, **options)


def power_of_two(n: int, least: int = 1) -> int:
    """The size of a range that covers n: Triton's ranges are powers of two, products need 16."""
    return max(least, triton.next_power_of_2(n))


def precision(dtype: torch.dtype) -> str:
    """Of products with float32 operands, for activations of `dtype`.

    tf32 keeps 10 bits of the fraction, more than bfloat16's 7; float32 activations get three tf32
    products instead of one, which together keep nearly all 23.
    """
    return "tf32x3" if dtype == torch.float32 else "tf32"


def before_hopper(device: torch.device) -> bool:
    """Whether kernels for `device` have less shared memory than Hopper gives, and no wgmma."""
    if device.type == "cpu" or not torch.cuda.is_available():
        return False
    which = device if device.type == "cuda" else None  # meta: compiled for the GPU that is here
    return torch.cuda.get_device_capability(which) < (9, 0)


def has_wgmma(device: torch.device) -> bool:
    """Whether kernels for `device` multiply with Hopper's unit, which works on while they do."""
    if device.type == "cpu":
        return False
    which = device if device.type == "cuda" else None
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(which)[0] == 9


def with_unit_stride(x: Tensor) -> Tensor:
    """x itself if its last dimension is contiguous (all that kernels ask), else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


@triton.jit
def find_request(starts_ptr, requests, block, BLOCK):
    """Which request block number `block` belongs to, when each has its own blocks of tokens.

    Request i gets the blocks from starts[i] // BLOCK + i on: at least as many as its tokens need,
    at least one, computed from its start alone. T // BLOCK + R blocks cover all requests, and the
    host needs to know no lengths.

    Returns (request, first token of the block counted from the request's start).
    """
    low = 0
    high = requests
    while high - low > 1:  # starts[low] is at or before the block, starts[high] is after it
        middle = (low + high) // 2
        start = tl.load(starts_ptr + middle).to(tl.int32)
        at_or_before = start // BLOCK + middle <= block
        low = tl.where(at_or_before, middle, low)
        high = tl.where(at_or_before, high, middle)
    first = tl.load(starts_ptr + low).to(tl.int32)
    return low, (block - (first // BLOCK + low)) * BLOCK


# Programmatic dependent launch (PDL): kernel n + 1 of a stream may start while kernel n still runs,
# and waits inside for its results. What it can do before that (its launch, its addresses, its
# weights) then costs no time. A kernel launched so must wait before it reads what others wrote and
# before it writes anything: then all earlier kernels are done, not only the last one, because each
# of them has waited as well.


@triton.jit
def start_next():
    """The next kernel may be launched as soon as every program of this one has come here."""
    tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_earlier():
    """All earlier kernels of the stream are done, and what they wrote can be read."""
    tl.extra.cuda.gdc_wait()


@triton.jit
def ready(PDL: tl.constexpr):
    """The first line of a kernel that has nothing to do before its inputs are there."""
    if PDL:
        start_next()
        wait_for_earlier()


@triton.jit
def prefetch(address):
    """Ask for the lines at `address` [...] to be brought into L2; nobody waits for them."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [address],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def wait_for_products(step):
    """Hopper: products under way are done, and the registers that they read may be written.

    A loop leaves the last ones of an iteration under way. Where their operand is in registers, the
    next iteration's instructions write its own there without a wait (with Triton 3.6 to 3.8; 3.9
    waits by itself), and a sum came out as NaN once. `step` is any number. That no kernel needs
    this and lacks it is read from the machine code: tests/kernels/test_triton_compile.py.
    """
    tl.inline_asm_elementwise(
        "wgmma.wait_group.sync.aligned 0; mov.u32 $0, $1;",
        "=r,r",
        [step],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def silu(x):
    """x / (1 + exp(-x)). A division is eight instructions, the root's inverse is one."""
    root = tl.rsqrt(1 + tl.exp2(-1.4426950408889634 * x))  # exp2 is one as well, exp is five
    return x * root * root


@triton.jit
def softplus(x):
    """log(1 + exp x), also where exp x is too small for 1 + exp x to notice (Kahan's log1p)."""
    y = tl.exp(tl.minimum(x, 20.0))
    w = 1 + y
    log1p = tl.where(w == 1, y, tl.log(w) * (y / tl.where(w == 1, 1.0, w - 1)))
    return tl.where(x > 20, x, log1p)
