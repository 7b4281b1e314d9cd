# mypy: disallow-untyped-defs=False
"""SwiGLU's product of 65 to 128 tokens: fed by the copy engine of Hopper GPUs (TMA).

Formulas and twins: plamo_ref/kernels/linear/twin.py.

A program has all tokens, and one after the other some rows of gate and the same rows of up. A block
of x and one of W are one instruction each, of one thread, lie in shared memory as the matrix unit
wants them, and end in zeros where x or W ends. Both halves are one product, so a thread has gate
and up of the same outputs; loads of the next rows are under way while these are written.

Invariant: W is read once; sums are added in float32 in the order of the columns, and rounded before
SwiGLU and behind it, as where they are two operations.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from plamo_ref.kernels.launch import (
    Config,
    launch,
    pick,
    precision,
    silu,
    start_next,
    wait_for_earlier,
)

# Size: tokens. A block is rows of gate, and as many of up; a tile columns of one loop iteration.
# Measured on an H200 by benchmarks/linear_sweep.py: a block of x that ends in zeros comes slower,
# so with many of them each had better meet more rows.
TILES = (
    Config(up_to=111, block=128, warps=8, stages=4, tile=64),
    Config(up_to=128, block=64, warps=8, stages=5, tile=64),
)
TOKENS = 128  # of a tile
MULTIPROCESSORS = 132  # of a Hopper GPU, where none can be asked
BUSY = 0.9  # of them, where blocks are large: with fewer the kernel of few tokens is faster


@triton.jit(do_not_specialize=["T"])
def tiles_swiglu_kernel(
    x_rows,  # descriptors: x [T, K]
    w_rows,  # W [2, N, K]
    out_ptr,
    T,
    N,
    K,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Tiles [BLOCK_T, BLOCK_N] of the output, one after the other."""
    kind = out_ptr.dtype.element_ty
    t = tl.arange(0, BLOCK_T)
    if PDL:
        start_next()
        wait_for_earlier()
    for tile in tl.range(tl.program_id(0), tl.cdiv(N, BLOCK_N), tl.num_programs(0), flatten=True):
        acc = tl.zeros((BLOCK_T, 2 * BLOCK_N), dtype=tl.float32)
        for step in range(tl.cdiv(K, BLOCK_K)):
            x = x_rows.load([0, step * BLOCK_K])
            w = w_rows.load([0, tile * BLOCK_N, step * BLOCK_K])
            w = tl.reshape(w, (2 * BLOCK_N, BLOCK_K))
            acc = tl.dot(x, w.T, acc=acc, input_precision=PRECISION)
        # Halves of a row are half the tile apart, in registers of the same thread.
        both = tl.reshape(acc.to(kind).to(tl.float32), (BLOCK_T, 2, BLOCK_N))
        gate, up = tl.split(tl.permute(both, (0, 2, 1)))
        n = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (t < T)[:, None] & (n < N)[None, :]
        tl.store(out_ptr + t[:, None] * N + n[None, :], (silu(gate) * up).to(kind), mask=inside)


def tiles_for(x: Tensor, weight: Tensor) -> Config | None:
    """How the product with weight [2F, in] is cut; None: others are faster, or this cannot be."""
    tokens, rows = x.shape[0], weight.shape[0] // 2
    can_be = has_copy_engine(x.device) and can_be_copied(x) and can_be_copied(weight)
    if not (64 < tokens <= TOKENS and can_be):
        return None
    config = pick(TILES, tokens)
    busy = triton.cdiv(rows, config.block) >= BUSY * multiprocessors(x.device)
    return config if busy or config is TILES[-1] else None


def swiglu_in_tiles(x: Tensor, weight: Tensor, config: Config, *, pdl: bool = False) -> Tensor:
    """x [T, in], T up to 128, weight [2F, in], gate rows first → [T, F]."""
    (tokens, columns), rows = x.shape, weight.shape[0] // 2
    if x.dtype == torch.float32:  # twice as wide, and every operand in two halves: for checking
        config = replace(config, block=16, tile=32, stages=2)
    out = torch.empty((tokens, rows), dtype=x.dtype, device=x.device)
    stride = weight.stride(0)
    halves = [2, config.block, config.tile]
    launch(
        tiles_swiglu_kernel,
        (min(triton.cdiv(rows, config.block), multiprocessors(x.device)),),
        TensorDescriptor(x, [tokens, columns], [x.stride(0), 1], [TOKENS, config.tile]),
        TensorDescriptor(weight, [2, rows, columns], [rows * stride, stride, 1], halves),
        out,
        tokens,
        rows,
        columns,
        config=config,
        BLOCK_T=TOKENS,
        BLOCK_N=config.block,
        BLOCK_K=config.tile,
        PRECISION=precision(x.dtype),
        PDL=pdl,
    )
    return out


def can_be_copied(matrix: Tensor) -> bool:
    """The copy engine reads rows that lie 16 bytes, or a multiple, apart."""
    in_line = matrix.stride(0) * matrix.itemsize % 16 == 0 and matrix.data_ptr() % 16 == 0
    return matrix.stride(1) == 1 and in_line


def has_copy_engine(device: torch.device) -> bool:
    """Hopper has one, and so has the interpreter."""
    if device.type == "meta":  # compiled for the GPU that is here, or for a new one
        return not torch.cuda.is_available() or torch.cuda.get_device_capability() >= (9, 0)
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (9, 0)


def multiprocessors(device: torch.device) -> int:
    """How many programs that need all of a multiprocessor run at once."""
    if device.type != "cuda":
        return MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
