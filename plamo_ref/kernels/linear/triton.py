# mypy: disallow-untyped-defs=False
"""Products of a few tokens with a weight: as fast as the weight can be read.

Formulas and twins: plamo_ref/kernels/linear/twin.py.

A decode step is a few rows times every weight of the model, so its time is that of reading the
weights. One program reads BLOCK_N rows of W (or a part of their columns) and multiplies them with
all tokens: W is the tall operand of the matrix unit, the tokens are the short one.

Invariant: W is read once whatever the number of tokens, up to the table's last row; beyond it the
product is bound by arithmetic, and cuBLAS is used. Below, triton_tiles.py has what it wins.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import (
    Config,
    launch,
    pick,
    power_of_two,
    precision,
    prefetch,
    silu,
    start_next,
    wait_for_earlier,
    with_unit_stride,
)
from plamo_ref.kernels.linear import triton_swiglu as triton_mlp
from plamo_ref.kernels.linear.triton_tiles import swiglu_in_tiles, tiles_for

# Size: tokens. A block is rows of W, a tile columns of one loop iteration. Measured on an H100 by
# benchmarks/linear_sweep.py.
LINEAR_CONFIGS = (
    Config(up_to=16, block=64, warps=4, stages=4, tile=128),
    Config(up_to=64, block=64, warps=4, stages=4, tile=128),
    Config(up_to=128, block=64, warps=4, stages=5, tile=64),
)
TALL_CONFIGS = (  # of a W with many more rows than programs are wanted, as the vocabulary has
    Config(up_to=16, block=64, warps=4, stages=3, tile=128),
    Config(up_to=64, block=128, warps=8, stages=3, tile=128),
    Config(up_to=128, block=128, warps=8, stages=3, tile=64),
)
SWIGLU_CONFIGS = (  # beyond FEW where triton_tiles.py has no better cut
    Config(up_to=64, block=64, warps=4, stages=4, tile=128),
    Config(up_to=128, block=64, warps=8, stages=3, tile=128),
)
TALL_ROWS = 32768
# Up to FEW tokens every product is faster here than in cuBLAS; beyond them only those whose W is
# very tall, or so narrow that cuBLAS keeps half of the GPU waiting.
FEW, NARROW_ROWS = 64, 1024
LEAST_COLUMNS = 256  # of a part: less is not worth adding up
LINE = tl.constexpr(64)  # elements of two bytes in a line of the cache
LEAST_TOKENS = 16  # products of matrices need it; what is missing is masked


@triton.jit(do_not_specialize=["T"])
def linear_kernel(
    x_ptr,
    w_ptr,
    out_ptr,
    T,
    x_stride,
    N,
    K,
    w_stride,
    columns,  # of a part, a multiple of BLOCK_K but for the last part
    SWIGLU: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
    PREFETCH: tl.constexpr,  # columns of W asked for while earlier kernels still run
    PDL: tl.constexpr,
):
    """BLOCK_N rows of W, one part of its columns, all tokens: a tile [BLOCK_N, BLOCK_T]."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k, t = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_T)
    part = tl.program_id(1)
    n_in, t_in = (n < N)[:, None], (t < T)[None, :]
    begin = part * columns
    end = tl.minimum(begin + columns, K)
    w_row = w_ptr + n.to(tl.int64)[:, None] * w_stride
    x_row = x_ptr + t[None, :] * x_stride
    acc = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    if PDL:
        start_next()
        if PREFETCH > 0:
            # A weight depends on nobody: its way from memory to L2 can begin before x is there.
            line = begin + tl.arange(0, PREFETCH // LINE) * LINE
            at = w_row + tl.where(line < end, line, begin)[None, :]
            prefetch(tl.where(n_in, at, w_ptr))
            if SWIGLU:
                prefetch(tl.where(n_in, at + N.to(tl.int64) * w_stride, w_ptr))
        wait_for_earlier()
    for start in range(begin, end, BLOCK_K):
        column = start + k
        inside = column < end
        w = tl.load(w_row + column[None, :], mask=n_in & inside[None, :], other=0.0)
        x = tl.load(x_row + column[:, None], mask=t_in & inside[:, None], other=0.0)
        acc = tl.dot(w, x, acc=acc, input_precision=PRECISION)
        if SWIGLU:
            # N rows further down; N is the number of outputs.
            far = N.to(tl.int64) * w_stride
            w = tl.load(w_row + far + column[None, :], mask=n_in & inside[None, :], other=0.0)
            up = tl.dot(w, x, acc=up, input_precision=PRECISION)
    if SWIGLU:
        # The product is rounded before SwiGLU, as where they are two operations.
        acc, up = acc.to(x_ptr.dtype.element_ty), up.to(x_ptr.dtype.element_ty)
        acc = silu(acc.to(tl.float32)) * up.to(tl.float32)
    out = out_ptr + (part * T + t).to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=n_in & t_in)


def linear(x: Tensor, weight: Tensor, *, pdl: bool = False) -> Tensor:
    """x [T, in], weight [out, in] → [T, out]."""
    tall = weight.shape[0] >= TALL_ROWS
    table = TALL_CONFIGS if tall else LINEAR_CONFIGS
    if x.shape[0] > (table[-1].up_to if tall else FEW):
        return F.linear(x, weight)
    return _few_tokens(x, weight, pick(table, x.shape[0]), parts=1, pdl=pdl)[0]


def linear_parts(x: Tensor, weight: Tensor, *, pdl: bool = False) -> Tensor:
    """x [T, in], weight [out, in] → [parts, T, out]; float32 if there are several."""
    parts = parts_for(x.shape[0], *weight.shape)
    if parts is None:
        return F.linear(x, weight)[None]
    return _few_tokens(x, weight, pick(LINEAR_CONFIGS, x.shape[0]), parts, pdl=pdl)


def linear_swiglu(x: Tensor, weight: Tensor, *, pdl: bool = False) -> Tensor:
    """x [T, in], weight [2F, in], gate rows first → [T, F]."""
    tiles = tiles_for(x, weight)
    if tiles is not None:
        return swiglu_in_tiles(x, weight, tiles, pdl=pdl)
    if x.shape[0] > SWIGLU_CONFIGS[-1].up_to:
        return triton_mlp.swiglu(F.linear(x, weight))
    config = pick(SWIGLU_CONFIGS, x.shape[0])
    return _few_tokens(x, weight, config, parts=1, swiglu=True, pdl=pdl)[0]


def parts_for(tokens: int, rows: int, columns: int) -> int | None:
    """How many programs share the columns of a weight; None: the library multiplies."""
    if tokens > (LINEAR_CONFIGS[-1].up_to if rows <= NARROW_ROWS else FEW):
        return None
    return parts_of(rows, columns, pick(LINEAR_CONFIGS, tokens), tokens)


def parts_of(rows: int, columns: int, config: Config, tokens: int) -> int:
    """How many programs share the columns of a weight in blocks of rows: a power of two.

    The more tokens, the more there is to add up: then half as many programs do better.
    """
    programs = config.programs if tokens <= 32 else config.programs // 2
    wanted = min(programs // triton.cdiv(rows, config.block), columns // LEAST_COLUMNS)
    return 1 << max(wanted, 1).bit_length() - 1


def _few_tokens(
    x: Tensor,
    weight: Tensor,
    config: Config,
    parts: int,
    *,
    swiglu: bool = False,
    pdl: bool = False,
) -> Tensor:
    """The product in parts: [parts, T, out]."""
    (tokens, columns), rows = x.shape, weight.shape[0] // (2 if swiglu else 1)
    if not (weight.shape[1] == columns and weight.stride(1) == 1):
        raise KernelError(
            f"linear: x {list(x.shape)} does not fit a weight {list(weight.shape)} with contiguous "
            "rows [out, in]"
        )
    x = with_unit_stride(x)
    if x.dtype == torch.float32:  # twice as wide, and every operand in two halves: for checking
        config = Config(config.up_to, block=config.block, warps=config.warps, stages=2, tile=32)
    part = triton.cdiv(triton.cdiv(columns, parts), config.tile) * config.tile
    parts = triton.cdiv(columns, part)
    dtype = x.dtype if parts == 1 else torch.float32
    out = torch.empty((parts, tokens, rows), dtype=dtype, device=x.device)
    launch(
        linear_kernel,
        (triton.cdiv(rows, config.block), parts if tokens else 0),
        x,
        weight,
        out,
        tokens,
        x.stride(0),
        rows,
        columns,
        weight.stride(0),
        part,
        config=config,
        SWIGLU=swiglu,
        BLOCK_N=config.block,
        BLOCK_K=config.tile,
        BLOCK_T=power_of_two(tokens, LEAST_TOKENS),
        PRECISION=precision(x.dtype),
        PREFETCH=2 * config.tile,
        PDL=pdl,
    )
    return out
