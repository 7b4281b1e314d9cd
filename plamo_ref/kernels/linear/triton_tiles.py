# mypy: disallow-untyped-defs=False
"""Products of more tokens than a decode of few has: tiles of the output, one after the other.

Formulas and twins: plamo_ref/kernels/linear/twin.py.

As many programs as the GPU has multiprocessors share the tiles out. The tensor units are fed by the
copy engine (TMA): a block of x and one of W is one instruction of one thread, lies in shared memory
as the matrix unit wants it, and is filled up with zeros at the edges. The loads of the next tile
are on their way while this one's results are written. With SwiGLU a tile has rows of gate and the
same rows of up in two accumulators of one layout, so that the end of the product is elementwise.

Invariant: a number of the output is the work of one program (of one for each part), added in
float32 in the order of the columns, and rounded once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from plamo_ref.kernels.launch import (
    prefetch,
    silu,
    start_next,
    wait_for_earlier,
)

LINE = tl.constexpr(64)  # elements of two bytes in a line of the cache


@triton.jit
def tile_place(tile, tiles_t, tiles_n, GROUP: tl.constexpr):
    """Which tokens, which rows and which part a tile is of: GROUP blocks of tokens take their turn
    with the same rows, so that what runs at the same time shares what it reads."""
    of_part = tiles_t * tiles_n
    part, tile = tile // of_part, tile % of_part
    first = tile // (GROUP * tiles_n) * GROUP
    size = tl.minimum(tiles_t - first, GROUP)
    tile = tile % (GROUP * tiles_n)
    return first + tile % size, tile // size, part


@triton.jit(do_not_specialize=["T", "steps"])
def tiles_kernel(
    x_rows,  # descriptors of x and W
    w_rows,
    w_ptr,
    out_ptr,
    T,
    N,
    K,
    w_stride,
    steps,  # of a part: iterations of the loop over columns
    parts,
    SWIGLU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,  # with SwiGLU of gate, and as many of up
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    HALVES: tl.constexpr,  # pieces in which a tile is written
    PRECISION: tl.constexpr,
    FLATTEN: tl.constexpr,
    PREFETCH: tl.constexpr,  # columns of W asked for while earlier kernels still run
    PDL: tl.constexpr,
):
    ROWS: tl.constexpr = BLOCK_N * 2 if SWIGLU else BLOCK_N
    tiles_t, tiles_n = tl.cdiv(T, BLOCK_T), tl.cdiv(N, BLOCK_N)
    kind = out_ptr.dtype.element_ty
    if PDL:
        start_next()
        if PREFETCH > 0:
            # A weight depends on nobody: its way from memory to L2 can begin before x is there.
            _, n_tile, part = tile_place(tl.program_id(0), tiles_t, tiles_n, GROUP)
            row = n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
            line = part * steps * BLOCK_K + tl.arange(0, PREFETCH // LINE) * LINE
            at = w_ptr + tl.minimum(row, N - 1).to(tl.int64)[:, None] * w_stride
            at = at + tl.minimum(line, K - 1)[None, :]
            prefetch(at)
            if SWIGLU:
                prefetch(at + N.to(tl.int64) * w_stride)
        wait_for_earlier()
    for tile in tl.range(
        tl.program_id(0),
        tiles_t * tiles_n * parts,
        tl.num_programs(0),
        flatten=FLATTEN,
    ):
        t_tile, n_tile, part = tile_place(tile, tiles_t, tiles_n, GROUP)
        t0, n0 = t_tile * BLOCK_T, n_tile * BLOCK_N
        acc = tl.zeros((BLOCK_T, ROWS), dtype=tl.float32)
        for step in range(steps):
            column = (part * steps + step) * BLOCK_K
            x = x_rows.load([t0, column])
            w = tl.reshape(w_rows.load([0, n0, column]), (ROWS, BLOCK_K))
            acc = tl.dot(x, w.T, acc=acc, input_precision=PRECISION)
        if SWIGLU:
            # The product is rounded before SwiGLU, as where they are two operations.
            both = tl.reshape(acc.to(kind).to(tl.float32), (BLOCK_T, 2, BLOCK_N))
            gate, up = tl.split(tl.permute(both, (0, 2, 1)))
            acc = silu(gate) * up
        t = t0 + tl.arange(0, BLOCK_T)
        out = out_ptr + (part * T + t).to(tl.int64)[:, None] * N
        t_in = (t < T)[:, None]
        if HALVES == 1:
            n = n0 + tl.arange(0, BLOCK_N)
            tl.store(out + n[None, :], acc.to(kind), mask=t_in & (n < N)[None, :])
        else:
            pair = tl.permute(tl.reshape(acc.to(kind), (BLOCK_T, 2, BLOCK_N // 2)), (0, 2, 1))
            left, right = tl.split(pair)
            n = n0 + tl.arange(0, BLOCK_N // 2)
            tl.store(out + n[None, :], left, mask=t_in & (n < N)[None, :])
            n += BLOCK_N // 2
            tl.store(out + n[None, :], right, mask=t_in & (n < N)[None, :])


def multiply(
    x: Tensor,
    weight: Tensor,
    *,
    block_t: int,
    block_n: int,
    block_k: int,
    stages: int,
    warps: int,
    parts: int = 1,
    group: int = 16,
    halves: int = 1,
    flatten: bool = True,
    swiglu: bool = False,
    programs: int = 132,
    prefetched: int = 256,
    pdl: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    (tokens, columns), rows = x.shape, weight.shape[0] // (2 if swiglu else 1)
    height = 2 if swiglu else 1
    steps = triton.cdiv(triton.cdiv(columns, parts), block_k)
    parts = triton.cdiv(columns, steps * block_k)
    if out is None:
        dtype = x.dtype if parts == 1 else torch.float32
        out = torch.empty((parts, tokens, rows), dtype=dtype, device=x.device)
    tiles = triton.cdiv(tokens, block_t) * triton.cdiv(rows, block_n) * parts
    options = {"launch_pdl": True} if pdl else {}
    call = tiles_kernel.warmup if x.is_meta else tiles_kernel[(min(programs, tiles),)]
    if x.is_meta:
        options["grid"] = (1,)
    made = call(
        TensorDescriptor.from_tensor(x, [block_t, block_k]),
        TensorDescriptor.from_tensor(
            weight.view(height, rows, columns), [height, block_n, block_k]
        ),
        weight,
        out,
        tokens,
        rows,
        columns,
        weight.stride(0),
        steps,
        parts,
        SWIGLU=swiglu,
        BLOCK_T=block_t,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        GROUP=group,
        HALVES=halves,
        PRECISION="tf32",
        FLATTEN=flatten,
        PREFETCH=prefetched,
        PDL=pdl,
        num_warps=warps,
        num_stages=stages,
        **options,
    )
    return made if x.is_meta else out
