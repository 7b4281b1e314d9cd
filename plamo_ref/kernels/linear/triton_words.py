# mypy: disallow-untyped-defs=False, disable-error-code="assignment"
"""The kernel of products with an int4 or int8 weight: few bytes, and little to do for each.

Formulas and twins: plamo_ref/kernels/linear/quantized.py. How the weights lie in their words:
plamo_ref/quantization/words.py.

What a thread has of the words of a unit is an operand of the matrix unit as it has to lie, once the
bits are spread. Spreading costs few instructions because a byte u in the lowest place of a bfloat16
is the number u · 2^-133, also where it is a denormal one. So a mask takes a weight out of each half
of a word, and one multiplication and addition makes it (v - offset) / 64 of int8, without rounding,
and (v - 8) * scale / 2^21 of int4, rounded once; what is too little is made good at the end. Eight
weights of int4 are 9 instructions and 6 for their scale, four of int8 are 4.

The scales of an iteration are asked for in the one before: nothing else in the loop would wait for
memory. A row that is not there is the last one once more: only what is stored needs a mask.

Invariant: a word of W is read once for each tile of tokens.
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

LINE = tl.constexpr(32)  # words in a line of the cache
UNIT_OF_4, UNIT_OF_8 = tl.constexpr(2.0**21), tl.constexpr(64.0)  # what ASM leaves to be made good

UNPACK4 = tl.constexpr(
    """{
    .reg .b32 high, n, low_place, high_place, less, times, none;
    mov.b32 none, 0x80008000;      // -0
    mov.b32 times, 0x77807780;     // 2^112
    fma.rn.bf16x2 low_place, $5, times, none;
    mov.b32 times, 0x75807580;     // 2^108
    fma.rn.bf16x2 high_place, $5, times, none;
    mov.b32 times, 0xB680B680;     // -8 * 2^-21
    fma.rn.bf16x2 less, $5, times, none;
    shr.b32 high, $4, 8;
    and.b32 n, $4, 0x000F000F;
    fma.rn.bf16x2 $0, n, low_place, less;
    and.b32 n, $4, 0x00F000F0;
    fma.rn.bf16x2 $1, n, high_place, less;
    and.b32 n, high, 0x000F000F;
    fma.rn.bf16x2 $2, n, low_place, less;
    and.b32 n, high, 0x00F000F0;
    fma.rn.bf16x2 $3, n, high_place, less;
    }"""
)
UNPACK8 = tl.constexpr(
    """{
    .reg .b32 n, place, less;
    mov.b32 place, 0x7F007F00;  // 2^127
    mov.b32 less, 0xC000C000;   // -128 / 64
    and.b32 n, $2, 0x00FF00FF;
    fma.rn.bf16x2 $0, n, place, less;
    prmt.b32 n, $2, 0, 0x4341;
    fma.rn.bf16x2 $1, n, place, less;
    }"""
)


@triton.jit
def halves(pair):
    """Two bfloat16 in a word → [..., 2]."""
    low = pair.to(tl.int16).to(tl.bfloat16, bitcast=True)
    high = (pair >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return tl.join(low, high)


@triton.jit
def fields(words, place: tl.constexpr, BITS: tl.constexpr, scale, KIND: tl.constexpr):
    """The weights in one place of both halves of each word, times their scale → [..., 2]."""
    low = (words >> (BITS * place)) & ((1 << BITS) - 1)
    high = (words >> (16 + BITS * place)) & ((1 << BITS) - 1)
    half: tl.constexpr = 1 << (BITS - 1)
    low, high = (low - half).to(tl.float32) * scale, (high - half).to(tl.float32) * scale
    return tl.join(low.to(KIND), high.to(KIND))


@triton.jit
def numbers_of(
    words, scale, BITS: tl.constexpr, UNIT: tl.constexpr, KIND: tl.constexpr, ASM: tl.constexpr
):
    """words [n, w] → the weights [n, w · 32 / BITS] in the order of their columns: of int4 times
    `scale` [n, units]; where ASM, a 64th of int8's and 2^-21 of int4's. Nothing goes from one
    thread to another."""
    ROWS: tl.constexpr = words.shape[0]
    COLUMNS: tl.constexpr = words.shape[1] * 32 // BITS
    UNITS: tl.constexpr = COLUMNS // UNIT
    FOURTH: tl.constexpr = UNIT * BITS // 128
    w = tl.reshape(words, (ROWS, UNITS, 4, FOURTH))
    if BITS == 4:
        s = scale[:, :, None, None]
        if ASM:
            both = scale.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
            both = tl.broadcast_to((both | (both << 16))[:, :, None, None], w.shape)
            p0, p1, p2, p3 = tl.inline_asm_elementwise(
                UNPACK4,
                "=r,=r,=r,=r,r,r",
                [w, both],
                dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
                is_pure=True,
                pack=1,
            )
            n0, n1, n2, n3 = halves(p0), halves(p1), halves(p2), halves(p3)
        else:
            n0, n1 = fields(w, 0, BITS, s, KIND), fields(w, 1, BITS, s, KIND)
            n2, n3 = fields(w, 2, BITS, s, KIND), fields(w, 3, BITS, s, KIND)
        ns = tl.join(tl.join(n0, n2), tl.join(n1, n3))
        ns = tl.permute(ns, (0, 1, 3, 5, 6, 2, 4))
    else:
        if ASM:
            p0, p1 = tl.inline_asm_elementwise(
                UNPACK8, "=r,=r,r", [w], dtype=(tl.int32, tl.int32), is_pure=True, pack=1
            )
            n0, n1 = halves(p0), halves(p1)
        else:
            n0, n1 = fields(w, 0, BITS, 1.0, KIND), fields(w, 1, BITS, 1.0, KIND)
        ns = tl.permute(tl.join(n0, n1), (0, 1, 3, 5, 2, 4))
    return tl.reshape(ns, (ROWS, COLUMNS))


@triton.jit(do_not_specialize=["T", "steps", "part_steps"])
def words_linear_kernel(
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
    BLOCK_K: tl.constexpr,  # columns of a step, whole units of them
    BLOCK_T: tl.constexpr,
    WARPS: tl.constexpr,  # each has 16 rows, or several times 16
    CHAIN: tl.constexpr,  # a step adds to the sums within the unit of matrices; else behind it
    WAIT: tl.constexpr,  # Hopper: for products under way
    PRECISION: tl.constexpr,
    PREFETCH: tl.constexpr,  # words of a row asked for while earlier kernels still run
    PDL: tl.constexpr,
):
    """BLOCK_N rows of W, one part of its columns, a tile of tokens: [BLOCK_N, BLOCK_T]."""
    MISSING: tl.constexpr = (UNIT_OF_4 if BITS == 4 else UNIT_OF_8) if ASM else 1.0
    WORDS: tl.constexpr = BLOCK_K * BITS // 32
    UNITS: tl.constexpr = BLOCK_K // UNIT if BITS == 4 else 1  # which have scales
    OUTS: tl.constexpr = BLOCK_N // 2 if SWIGLU else BLOCK_N
    k, word, unit = tl.arange(0, BLOCK_K), tl.arange(0, WORDS), tl.arange(0, UNITS)
    # As warps come to what they load, eight rows each, a warp has those that it multiplies.
    i = tl.arange(0, BLOCK_N)
    i = i // (16 * WARPS) * (16 * WARPS) + i // 8 % WARPS * 16 + i // (8 * WARPS) % 2 * 8 + i % 8
    tiles = tl.cdiv(T, BLOCK_T)
    # Neighbours read the same rows of W.
    first = tl.program_id(0) // tiles * OUTS
    t = tl.program_id(0) % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    part = tl.program_id(1)
    row = tl.minimum(first + i % OUTS, N - 1) + i // OUTS * N
    begin = part * part_steps
    end = tl.minimum(begin + part_steps, steps)
    w_row = w_ptr + row.to(tl.int64)[:, None] * w_stride
    x_row = x_ptr + t.to(tl.int64)[None, :] * x_stride + k[:, None]
    scale_at = scale_ptr + row[:, None] + unit[None, :] * scale_stride
    t_in = (t < T)[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    if PDL:
        start_next()
        if PREFETCH > 0:
            # A weight depends on nobody: its way from memory to L2 can begin before x is there.
            line = begin * WORDS + tl.arange(0, PREFETCH // LINE) * LINE
            at = w_row + tl.minimum(line, end * WORDS - 1)[None, :]
            prefetch(at.to(tl.int64))
    scale = tl.load(scale_at + begin * UNITS * scale_stride) if BITS == 4 else 0.0
    if PDL:
        wait_for_earlier()
    for step in range(begin, end):
        next_scale = scale
        if BITS == 4:
            next_scale = tl.load(scale_at + tl.minimum(step + 1, end - 1) * UNITS * scale_stride)
        x = tl.load(x_row + step * BLOCK_K, mask=t_in, other=0.0)
        words = tl.load(w_row + word[None, :] + step * WORDS)
        w = numbers_of(words, scale, BITS, UNIT, x.dtype, ASM)
        w = tl.permute(
            tl.reshape(w, (BLOCK_N // (16 * WARPS), 2, WARPS, 8, BLOCK_K)), (0, 2, 1, 3, 4)
        )
        w = tl.reshape(w, (BLOCK_N, BLOCK_K))
        if CHAIN:
            acc = tl.dot(w, x, acc=acc, input_precision=PRECISION)
            if WAIT:
                wait_for_products(step)
        else:
            acc += tl.dot(w, x) * MISSING
        scale = next_scale
    if CHAIN:
        acc *= MISSING
    if BITS == 8:
        i = tl.arange(0, BLOCK_N)
        acc *= tl.load(scale_ptr + tl.minimum(first + i % OUTS, N - 1) + i // OUTS * N)[:, None]
    out_n = first + tl.arange(0, OUTS)
    if SWIGLU:
        # The product is rounded before SwiGLU, as where they are two operations.
        rounded = tl.reshape(acc.to(out_ptr.dtype.element_ty).to(tl.float32), (2, OUTS, BLOCK_T))
        gate, up = tl.split(tl.permute(rounded, (1, 2, 0)))
        acc = silu(gate) * up
    out = out_ptr + (part * T + t).to(tl.int64)[None, :] * N + out_n[:, None]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=(out_n < N)[:, None] & t_in)


@triton.jit
def words_dequantize_kernel(
    w_ptr,
    scale_ptr,
    out_ptr,
    N,
    K,
    w_stride,
    scale_row_stride,
    scale_stride,
    BITS: tl.constexpr,
    UNIT: tl.constexpr,
    ASM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,  # whole units
):
    """BLOCK_K columns of BLOCK_N rows; neighbours have neighbouring columns."""
    WORDS: tl.constexpr = BLOCK_K * BITS // 32
    UNITS: tl.constexpr = BLOCK_K // UNIT if BITS == 4 else 1  # which have scales
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    block, word, k = tl.program_id(0), tl.arange(0, WORDS), tl.arange(0, BLOCK_K)
    n_in, at = (n < N)[:, None], n.to(tl.int64)[:, None]
    words = tl.load(w_ptr + at * w_stride + block * WORDS + word[None, :], mask=n_in)
    unit = (block * UNITS + tl.arange(0, UNITS)) * scale_stride
    scale = tl.load(scale_ptr + n[:, None] * scale_row_stride + unit[None, :], mask=n_in, other=0.0)
    kind = out_ptr.dtype.element_ty
    made = numbers_of(words, scale, BITS, UNIT, kind, ASM).to(tl.float32)
    if ASM:
        made *= UNIT_OF_4 if BITS == 4 else UNIT_OF_8
    if BITS == 8:
        made *= scale
    tl.store(out_ptr + at * K + block * BLOCK_K + k[None, :], made.to(kind), mask=n_in)
