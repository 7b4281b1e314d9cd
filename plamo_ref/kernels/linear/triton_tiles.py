# mypy: disallow-untyped-defs=False
"""SwiGLU's product beyond a few tokens: tiles of the output, and SwiGLU at the end of each.

Formulas and twins: plamo_ref/kernels/linear/twin.py.

As many programs as the GPU has multiprocessors share the tiles out. The copy engine (TMA) feeds the
matrix unit: a block of x, and one of W with rows of gate and the same rows of up, are one
instruction each, lie in shared memory as the unit wants them, and end in zeros where x or W ends.
Both halves are one product, so a thread has gate and up of the same outputs: SwiGLU reads and
writes nothing, and a product of 8192 tokens saves three passes over its rows.

A block of x that ends in zeros takes the copy engine up to twice as long, so the last tile begins
early: what two tiles have in common both compute, and write the same.

Invariant: a tile is the work of one program, added in float32 in the order of the columns, rounded
before SwiGLU and behind it, as where they are two operations.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from plamo_ref.kernels.launch import (
    Config,
    launch,
    precision,
    silu,
    start_next,
    wait_for_earlier,
)


@dataclass(frozen=True)
class Tiles(Config):
    """A block is rows of gate, and as many of up; a tile columns of one loop iteration."""

    over: int = 0  # the row is for more tokens than these
    least: float = 0.0  # the share of what its programs multiply that must be of use
    tokens: int = 128  # of an output tile
    ahead: bool = True  # the next tile's loads are under way while this one is written


# Size: tokens. Measured on an H200 by benchmarks/linear_sweep.py. Up to 64 tokens the kernel of few
# is faster, from 129 to 256 the library with SwiGLU apart: its tiles fit numbers like 160, too.
TILES = (
    Tiles(over=64, up_to=128, least=0.84, block=64, warps=8, stages=5, tile=64),
    Tiles(over=64, up_to=128, least=0.49, block=128, warps=8, stages=4, tile=64, ahead=False),
    Tiles(over=256, up_to=1 << 20, least=0.84, block=128, warps=8, stages=3, tile=64),
)
GROUP = 8  # blocks of tokens that take their turn with the same rows of W
MULTIPROCESSORS = 132  # of a Hopper GPU, where none can be asked


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
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Tiles [BLOCK_T, BLOCK_N] of the output, one after the other."""
    tiles_t, tiles_n = tl.cdiv(T, BLOCK_T), tl.cdiv(N, BLOCK_N)
    kind = out_ptr.dtype.element_ty
    if PDL:
        start_next()
        wait_for_earlier()
    for tile in tl.range(tl.program_id(0), tiles_t * tiles_n, tl.num_programs(0), flatten=AHEAD):
        # GROUP blocks of tokens, then the next rows: programs of one time share what they read.
        first = tile // (GROUP * tiles_n) * GROUP
        size = tl.minimum(tiles_t - first, GROUP)
        within = tile % (GROUP * tiles_n)
        t0, n0 = (first + within % size) * BLOCK_T, within // size * BLOCK_N
        t0 = tl.maximum(tl.minimum(t0, T - BLOCK_T), 0)
        acc = tl.zeros((BLOCK_T, 2 * BLOCK_N), dtype=tl.float32)
        for step in range(tl.cdiv(K, BLOCK_K)):
            x = x_rows.load([t0, step * BLOCK_K])
            w = tl.reshape(w_rows.load([0, n0, step * BLOCK_K]), (2 * BLOCK_N, BLOCK_K))
            acc = tl.dot(x, w.T, acc=acc, input_precision=PRECISION)
        # Halves of a row are half the tile apart, in registers of the same thread.
        both = tl.reshape(acc.to(kind).to(tl.float32), (BLOCK_T, 2, BLOCK_N))
        gate, up = tl.split(tl.permute(both, (0, 2, 1)))
        t, n = t0 + tl.arange(0, BLOCK_T), n0 + tl.arange(0, BLOCK_N)
        out = out_ptr + t.to(tl.int64)[:, None] * N + n[None, :]
        inside = (t < T)[:, None] & (n < N)[None, :]
        tl.store(out, (silu(gate) * up).to(kind), mask=inside)


def tiles_for(x: Tensor, weight: Tensor) -> Tiles | None:
    """How the product with weight [2F, in] is cut; None: others are faster, or this cannot be."""
    if not (has_copy_engine(x.device) and can_be_copied(x) and can_be_copied(weight)):
        return None
    tokens, rows, places = x.shape[0], weight.shape[0] // 2, multiprocessors(x.device)

    def is_worth(row: Tiles) -> bool:
        if not row.over < tokens <= row.up_to:
            return False
        turns = triton.cdiv(number_of_tiles(row, tokens, rows), places)
        useful = tokens * rows / (turns * places * row.tokens * row.block)
        return useful >= row.least

    return next((row for row in TILES if is_worth(row)), None)


def number_of_tiles(config: Tiles, tokens: int, rows: int) -> int:
    return triton.cdiv(tokens, config.tokens) * triton.cdiv(rows, config.block)


def swiglu_in_tiles(x: Tensor, weight: Tensor, config: Tiles, *, pdl: bool = False) -> Tensor:
    """x [T, in], weight [2F, in], gate rows first → [T, F]."""
    (tokens, columns), rows = x.shape, weight.shape[0] // 2
    if x.dtype == torch.float32:  # twice as wide, and every operand in two halves: for checking
        config = replace(config, tokens=64, block=32, tile=32, stages=2, warps=4)
    out = torch.empty((tokens, rows), dtype=x.dtype, device=x.device)
    stride, height = weight.stride(0), 2
    tiles = number_of_tiles(config, tokens, rows)
    launch(
        tiles_swiglu_kernel,
        (min(tiles, multiprocessors(x.device)),),
        TensorDescriptor(x, [tokens, columns], [x.stride(0), 1], [config.tokens, config.tile]),
        TensorDescriptor(
            weight,
            [height, rows, columns],
            [rows * stride, stride, 1],
            [height, config.block, config.tile],
        ),
        out,
        tokens,
        rows,
        columns,
        config=config,
        BLOCK_T=config.tokens,
        BLOCK_N=config.block,
        BLOCK_K=config.tile,
        GROUP=GROUP,
        PRECISION=precision(x.dtype),
        AHEAD=config.ahead,
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
