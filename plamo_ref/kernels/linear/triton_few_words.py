# mypy: disallow-untyped-defs=False, disable-error-code="assignment"
"""The kernel of a few tokens with an int4 or int8 weight: every warp reads columns of its own.

Formulas and twins: plamo_ref/kernels/linear/quantized.py. How words become numbers:
triton_words.py.

One request reads a weight of int4 in a quarter of the time of bfloat16, so what is not reading
counts four times as much. Here a program has few rows, and its warps share their columns: each
multiplies with the small unit of matrices, 16 rows and 8 tokens at a time, which needs nobody
else's consent, and only at the end they add what they have. So there are many programs, each with
a whole row, and few partial sums are left for whoever reads the product.

Invariant: a word of W is read once for each tile of tokens.
"""

import triton
import triton.language as tl

from plamo_ref.kernels.launch import prefetch, silu, start_next, wait_for_earlier
from plamo_ref.kernels.linear.triton_words import UNIT_OF_4, UNIT_OF_8, numbers_of


@triton.jit(do_not_specialize=["T", "steps", "part_steps"])
def few_words_kernel(
    x_ptr,
    w_ptr,
    scale_ptr,
    out_ptr,
    T,
    x_stride,
    N,
    w_stride,
    scale_stride,  # of a group; 0: there are none
    steps,  # of a row: iterations of the loop
    part_steps,  # of a part
    BITS: tl.constexpr,
    UNIT: tl.constexpr,  # columns of a unit
    ASM: tl.constexpr,
    SWIGLU: tl.constexpr,  # of a tile's rows the second half is N rows further down
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # columns of a step and a warp, whole units of them
    BLOCK_T: tl.constexpr,
    WARPS: tl.constexpr,  # each has a slice of the columns
    PRECISION: tl.constexpr,
    PREFETCH: tl.constexpr,  # words of a row asked for while earlier kernels still run
    PDL: tl.constexpr,
):
    """BLOCK_N rows of W, one part of its columns, a tile of tokens: [BLOCK_N, BLOCK_T]."""
    WORDS: tl.constexpr = BLOCK_K * BITS // 32
    UNITS: tl.constexpr = BLOCK_K // UNIT if BITS == 4 else 1  # which have scales
    OUTS: tl.constexpr = BLOCK_N // 2 if SWIGLU else BLOCK_N
    k, word, unit = tl.arange(0, BLOCK_K), tl.arange(0, WORDS), tl.arange(0, UNITS)
    # As threads and warps come to what they load: eight rows, then those of the next slice.
    i = tl.arange(0, WARPS * BLOCK_N)
    slice, i = i // 8 % WARPS, i // (8 * WARPS) * 8 + i % 8
    tiles = tl.cdiv(T, BLOCK_T)
    # Neighbours read the same rows of W.
    first = tl.program_id(0) // tiles * OUTS
    t = tl.program_id(0) % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    part = tl.program_id(1)
    row = tl.minimum(first + i % OUTS, N - 1) + i // OUTS * N
    begin = part * part_steps
    end = tl.minimum(begin + part_steps, steps)
    w_row = w_ptr + row.to(tl.int64)[:, None] * w_stride + slice[:, None] * WORDS
    scale_at = scale_ptr + row[:, None] + (slice[:, None] * UNITS + unit[None, :]) * scale_stride
    column = tl.arange(0, WARPS)[:, None, None] * BLOCK_K + k[None, :, None]
    x_at = x_ptr + t.to(tl.int64)[None, None, :] * x_stride + column
    t_in = (t < T)[None, None, :]
    acc = tl.zeros((WARPS, BLOCK_N, BLOCK_T), dtype=tl.float32)
    if PDL:
        start_next()
        STEPS: tl.constexpr = PREFETCH // (WARPS * WORDS)
        if STEPS > 0:
            # A weight depends on nobody: its way from memory to L2 can begin before x is there.
            step = tl.minimum(begin + tl.arange(0, STEPS), end - 1)
            prefetch((w_row + step[None, :] * (WARPS * WORDS)).to(tl.int64))
    scale = tl.load(scale_at + begin * WARPS * UNITS * scale_stride) if BITS == 4 else 0.0
    if PDL:
        wait_for_earlier()
    for step in range(begin, end):
        next_scale = scale
        if BITS == 4:
            later = tl.minimum(step + 1, end - 1) * WARPS * UNITS
            next_scale = tl.load(scale_at + later * scale_stride)
        x = tl.load(x_at + step * WARPS * BLOCK_K, mask=t_in, other=0.0)
        words = tl.load(w_row + word[None, :] + step * WARPS * WORDS)
        w = numbers_of(words, scale, BITS, UNIT, x.dtype, ASM)
        w = tl.reshape(w, (BLOCK_N // 8, WARPS, 8, BLOCK_K))
        w = tl.reshape(tl.permute(w, (1, 0, 2, 3)), (WARPS, BLOCK_N, BLOCK_K))
        if ASM:
            # Nothing is done here; but how the operand lies is decided without a look beyond it.
            w = tl.inline_asm_elementwise(
                "mov.b16 $0, $1;", "=h,h", [w], dtype=tl.bfloat16, is_pure=False, pack=1
            )
        acc = tl.dot(w, x, acc=acc, input_precision=PRECISION)
        scale = next_scale
    total = tl.sum(acc, axis=0)
    if ASM:
        total *= UNIT_OF_4 if BITS == 4 else UNIT_OF_8
    if BITS == 8:
        i = tl.arange(0, BLOCK_N)
        total *= tl.load(scale_ptr + tl.minimum(first + i % OUTS, N - 1) + i // OUTS * N)[:, None]
    out_n = first + tl.arange(0, OUTS)
    if SWIGLU:
        # The product is rounded before SwiGLU, as where they are two operations.
        rounded = tl.reshape(total.to(out_ptr.dtype.element_ty).to(tl.float32), (2, OUTS, BLOCK_T))
        gate, up = tl.split(tl.permute(rounded, (1, 2, 0)))
        total = silu(gate) * up
    out = out_ptr + (part * T + t).to(tl.int64)[None, :] * N + out_n[:, None]
    tl.store(out, total.to(out_ptr.dtype.element_ty), mask=(out_n < N)[:, None] & (t < T)[None, :])
