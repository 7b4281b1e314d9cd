# mypy: disallow-untyped-defs=False, disable-error-code="assignment"
"""The kernel of products with an int4 weight: a quarter of the bytes, and little to do for each.

Formulas and twins: plamo_ref/kernels/linear/quantized.py. How the weights lie in their words:
plamo_ref/quantization/weight.py.

A word of a unit has a weight of each of its eight slices of 16 columns. So what a thread has of
16 words are eight operands of the matrix unit as they have to lie, once their bits are spread: two
words become sixteen numbers in 24 instructions (UNPACK), and none goes to another thread.

The scales of an iteration are asked for in the one before: nothing else in the loop would wait for
memory.

Invariant: a word of W is read once for each tile of tokens.
"""

import triton
import triton.language as tl

from plamo_ref.kernels.launch import prefetch, start_next, wait_for_earlier

UNIT = tl.constexpr(128)
SLICE = tl.constexpr(16)  # columns of a slice: the depth of one product of the matrix unit
WORDS = tl.constexpr(16)  # of a unit
LINE = tl.constexpr(32)  # words in a line of the cache

# Two words, and of each byte of both: two times two numbers. A bfloat16 with the bits 0x430n is
# 128 + n, so 136 less is the weight.
BYTE = """
    prmt.b32 low, $8, $9, SELECT;
    shr.b32 high, low, 4;
    lop3.b32 low, low, 0x000F000F, 0x43004300, 0xEA;
    lop3.b32 high, high, 0x000F000F, 0x43004300, 0xEA;
    fma.rn.bf16x2 $LOW, low, one, less;
    fma.rn.bf16x2 $HIGH, high, one, less;"""
UNPACK = tl.constexpr(
    """{
    .reg .b32 low, high, one, less;
    mov.b32 one, 0x3F803F80;
    mov.b32 less, 0xC308C308;"""
    + "".join(
        BYTE.replace("SELECT", f"0x{4 + byte}{4 + byte}{byte}{byte}")
        .replace("LOW", str(2 * byte))
        .replace("HIGH", str(2 * byte + 1))
        for byte in range(4)
    )
    + "\n}"
)


@triton.jit
def numbers_of(words, place: tl.constexpr, KIND: tl.constexpr):
    """The weights in one place of each word."""
    return (((words >> (4 * place)) & 15) - 8).to(KIND)


@triton.jit
def slices_of(words, KIND: tl.constexpr, ASM: tl.constexpr):
    """words [n, 16] → eight times [n, 16] numbers of a kind."""
    if ASM and tl.bfloat16 == KIND:
        n0, n1, n2, n3, n4, n5, n6, n7 = tl.inline_asm_elementwise(
            UNPACK,
            "=r,=r,=r,=r,=r,=r,=r,=r,r,r",
            [words],
            dtype=(
                tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16,
                tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16,
            ),
            is_pure=True,
            pack=2,
        )  # fmt: skip
    else:
        n0, n1 = numbers_of(words, 0, KIND), numbers_of(words, 1, KIND)
        n2, n3 = numbers_of(words, 2, KIND), numbers_of(words, 3, KIND)
        n4, n5 = numbers_of(words, 4, KIND), numbers_of(words, 5, KIND)
        n6, n7 = numbers_of(words, 6, KIND), numbers_of(words, 7, KIND)
    return n0, n1, n2, n3, n4, n5, n6, n7


@triton.jit
def add_unit(acc, words, scales, xs, ASM: tl.constexpr, PRECISION: tl.constexpr):
    """acc [n, t] and the product of one unit; xs: its activations, eight times [16, t]."""
    ns = slices_of(words, xs[0].dtype, ASM)
    EACH: tl.constexpr = 8 // len(scales)  # slices of a group
    for group in tl.static_range(len(scales)):
        first: tl.constexpr = group * EACH
        product = tl.dot(ns[first], xs[first], input_precision=PRECISION)
        for i in tl.static_range(first + 1, first + EACH):
            product = tl.dot(ns[i], xs[i], acc=product, input_precision=PRECISION)
        acc += product * scales[group][:, None].to(tl.float32)
    return acc


@triton.jit
def scales_of(scale_ptr, unit, stride, n_in, GROUP: tl.constexpr):
    """The scales of the groups of a unit, each [n]."""
    at = scale_ptr + unit * (UNIT // GROUP) * stride
    scales = (tl.load(at, mask=n_in, other=0.0),)
    for group in tl.static_range(1, UNIT // GROUP):
        scales += (tl.load(at + group * stride, mask=n_in, other=0.0),)
    return scales


@triton.jit(do_not_specialize=["T"])
def int4_linear_kernel(
    x_ptr,
    w_ptr,  # words
    scale_ptr,
    out_ptr,
    T,
    x_stride,
    N,
    K,
    w_stride,
    scale_stride,  # of a group
    units,  # of a part
    GROUP: tl.constexpr,
    ASM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
    PREFETCH: tl.constexpr,  # words of a row asked for while earlier kernels still run
    PDL: tl.constexpr,
):
    """BLOCK_N rows of W, one part of its units, a tile of tokens: [BLOCK_N, BLOCK_T]."""
    tiles = tl.cdiv(T, BLOCK_T)
    # Neighbours read the same rows of W.
    n = tl.program_id(0) // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.program_id(0) % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
    part = tl.program_id(1)
    n_in, t_in = n < N, (t < T)[None, :]
    begin = part * units
    end = tl.minimum(begin + units, K // UNIT)
    word, k = tl.arange(0, WORDS), tl.arange(0, SLICE)
    w_row = w_ptr + n.to(tl.int64)[:, None] * w_stride
    x_row = x_ptr + t.to(tl.int64)[None, :] * x_stride + k[:, None]
    acc = tl.zeros((BLOCK_N, BLOCK_T), dtype=tl.float32)
    if PDL:
        start_next()
        if PREFETCH > 0:
            # A weight depends on nobody: its way from memory to L2 can begin before x is there.
            line = begin * WORDS + tl.arange(0, PREFETCH // LINE) * LINE
            at = w_row + tl.where(line < end * WORDS, line, begin * WORDS)[None, :]
            prefetch(tl.where(n_in[:, None], at, w_ptr).to(tl.int64))
    scales = scales_of(scale_ptr + n, begin, scale_stride, n_in, GROUP)
    if PDL:
        wait_for_earlier()
    for unit in range(begin, end):
        later = tl.minimum(unit + 1, end - 1)
        next_scales = scales_of(scale_ptr + n, later, scale_stride, n_in, GROUP)
        x = x_row + unit * UNIT
        xs = (tl.load(x, mask=t_in, other=0.0),)
        for i in tl.static_range(1, 8):
            xs += (tl.load(x + i * SLICE, mask=t_in, other=0.0),)
        w = w_row + word[None, :] + unit * WORDS
        words = tl.load(w, mask=n_in[:, None], other=0)
        acc = add_unit(acc, words, scales, xs, ASM, PRECISION)
        scales = next_scales
    out = out_ptr + (part * T + t).to(tl.int64)[None, :] * N + n[:, None]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=n_in[:, None] & t_in)


@triton.jit
def int4_dequantize_kernel(
    w_ptr,
    scale_ptr,
    out_ptr,
    N,
    K,
    w_stride,
    scale_row_stride,
    scale_stride,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,  # of a unit
    ASM: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One unit of BLOCK_N rows."""
    EACH: tl.constexpr = COLUMNS // 8
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    unit, word = tl.program_id(1), tl.arange(0, EACH)[None, :]
    n_in = n < N
    words = tl.load(w_ptr + n.to(tl.int64) * w_stride + unit * EACH + word, mask=n_in, other=0)
    kind = out_ptr.dtype.element_ty
    ns = slices_of(words, kind, ASM)
    for i in tl.static_range(8):
        column = unit * COLUMNS + i * EACH + word
        scale = scale_ptr + n * scale_row_stride + column // GROUP * scale_stride
        number = ns[i].to(tl.float32) * tl.load(scale, mask=n_in, other=0.0).to(tl.float32)
        tl.store(out_ptr + n.to(tl.int64) * K + column, number.to(kind), mask=n_in)
