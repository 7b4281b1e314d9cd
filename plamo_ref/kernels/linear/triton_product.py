# mypy: disallow-untyped-defs=False
"""The kernel of products with a quantized weight.

Formulas and twins: plamo_ref/kernels/linear/quantized.py.

The kernel is that of a plain weight (triton.py): BLOCK_N rows of W, a part of their columns, a tile
of tokens. Between the load and the product the bytes become numbers, in registers:

    fp8     are multiplied as they are where x is e4m3 too, else they become numbers of x's kind
    int8    become numbers of x's kind

Scales of rows and of tokens come once, at the end. What lies in words has a kernel of its own
(triton_words.py): int4, and all int8 but that of rows which 16 does not divide.

Invariant: a byte of W is read once for each tile of tokens, whatever it becomes.
"""

import triton
import triton.language as tl

from plamo_ref.kernels.launch import (
    prefetch,
    silu,
    start_next,
    wait_for_earlier,
    wait_for_products,
)
from plamo_ref.kernels.linear.triton_numbers import numbers

LINE = tl.constexpr(128)  # bytes in a line of the cache


@triton.jit
def add_product(
    acc,
    w_row,
    start,
    end,
    x,
    n_in,
    IN_FP8: tl.constexpr,
    DECODE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """acc [BLOCK_N, BLOCK_T] and the product of some columns, from `start` on."""
    column = start + tl.arange(0, BLOCK_K)
    w = tl.load(w_row + column[None, :], mask=n_in & (column < end)[None, :], other=0.0)
    if IN_FP8:
        # Sums of fp8 products within the unit keep few bits: they leave it after every tile.
        acc = tl.dot(w, x, acc=acc, max_num_imprecise_acc=BLOCK_K)
    else:
        acc = tl.dot(numbers(w, x.dtype, DECODE), x, acc=acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=["T"])
def quantized_linear_kernel(
    x_ptr,
    x_scale_ptr,
    w_ptr,
    scale_ptr,
    out_ptr,
    T,
    x_stride,
    N,
    K,
    w_stride,
    columns,  # of a part, a multiple of BLOCK_K but for the last part
    QUANTIZED: tl.constexpr,  # x is e4m3, with a scale for each token
    IN_FP8: tl.constexpr,  # … and is multiplied so
    DECODE: tl.constexpr,  # e4m3 comes as bytes
    SWIGLU: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    WAIT: tl.constexpr,  # Hopper: for products under way
    PRECISION: tl.constexpr,
    PREFETCH: tl.constexpr,  # bytes of a row of W asked for while earlier kernels still run
    PDL: tl.constexpr,
):
    """BLOCK_N rows of W, one part of its columns, a tile of tokens: [BLOCK_N, BLOCK_T]."""
    tiles = tl.cdiv(T, BLOCK_T)
    # Neighbours read the same rows of W.
    n = tl.program_id(0) // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(0) % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    part = tl.program_id(1)
    n_in, t_in = (n < N)[:, None], (t < T)[None, :]
    begin = part * columns
    end = tl.minimum(begin + columns, K)
    w_row = w_ptr + n.to(tl.int64)[:, None] * w_stride
    scale_row = scale_ptr + n[:, None]
    x_row = x_ptr + t.to(tl.int64)[None, :] * x_stride
    far = N.to(tl.int64) * w_stride  # N rows further down: of up
    acc = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    up = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    if PDL:
        start_next()
        if PREFETCH > 0:
            # A weight depends on nobody: its way from memory to L2 can begin before x is there.
            line = begin + tl.arange(0, PREFETCH // LINE) * LINE
            at = w_row + tl.where(line < end, line, begin)[None, :]
            prefetch(tl.where(n_in, at, w_ptr).to(tl.int64))
            if SWIGLU:
                prefetch(tl.where(n_in, at + far, w_ptr).to(tl.int64))
        wait_for_earlier()
    k = tl.arange(0, BLOCK_K)
    for start in range(begin, end, BLOCK_K):
        inside = t_in & (start + k < end)[:, None]
        x = tl.load(x_row + (start + k)[:, None], mask=inside, other=0.0)
        if QUANTIZED and not IN_FP8:
            x = numbers(x, tl.float32, DECODE)
        acc = add_product(acc, w_row, start, end, x, n_in, IN_FP8, DECODE, BLOCK_K, PRECISION)
        if SWIGLU:
            w_up = w_row + far
            up = add_product(up, w_up, start, end, x, n_in, IN_FP8, DECODE, BLOCK_K, PRECISION)
        if WAIT:
            wait_for_products(start)
    acc *= tl.load(scale_row, mask=n_in, other=0.0)
    if SWIGLU:
        up *= tl.load(scale_row + N, mask=n_in, other=0.0)
    if QUANTIZED:
        of_token = tl.load(x_scale_ptr + t, mask=t < T, other=0.0)[None, :]
        acc, up = acc * of_token, up * of_token
    if SWIGLU:
        # The product is rounded before SwiGLU, as where they are two operations.
        acc, up = acc.to(out_ptr.dtype.element_ty), up.to(out_ptr.dtype.element_ty)
        acc = silu(acc.to(tl.float32)) * up.to(tl.float32)
    out = out_ptr + (part * T + t).to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=n_in & t_in)
