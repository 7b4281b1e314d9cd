"""Cases of norms and products, the operations that know nothing of requests.

Invariant: numbers come from the maker alone; rows are further apart than they are long.
"""

import math
from collections.abc import Iterable, Iterator

from plamo_ref.bench.kernels.parts import Case, Maker, Shape
from plamo_ref.kernels.linear.quantized import quantize_tokens
from plamo_ref.kernels.ssm.selection import SelectionParams
from plamo_ref.quantization.quantize import quantize
from plamo_ref.quantization.schemes import SCHEMES

# Of SMALL's shapes: each scheme once, the others in tests of their own.
FEW = ("fp8", "int8", "int4", "fp8_weight_only", "int4")


def norm_cases(make: Maker, shape: Shape, tokens: int) -> Iterator[Case]:
    item, size = make.dtype.itemsize, shape.hidden
    x, gain = make.noise(tokens, size), make.noise(size)
    yield Case(f"{tokens}", "rms_norm", (x, gain, 1e-6), moved_bytes=2 * tokens * size * item)
    # As B, C and Δ come: a part of a wider row.
    part = make.noise(tokens, 2 * shape.state + 7)[:, 3 : 3 + shape.state]
    yield Case(f"{tokens} strided", "rms_norm", (part, make.noise(shape.state), 1e-6))
    rest = (gain, make.noise(size), 1e-6)
    arguments = (make.noise(tokens, size), x, *rest)
    yield Case(f"{tokens}", "add_norm", arguments, moved_bytes=4 * tokens * size * item)
    parts = make.parts(3, tokens, size)
    yield Case(f"{tokens}, 3 parts", "add_norm", (arguments[0], parts, *rest))
    yield Case(f"{tokens}, quantized", "add_norm", (*arguments, True))


def linear_cases(make: Maker, shape: Shape, tokens: int) -> Iterator[Case]:
    """Every product of a layer: wide, narrow, and with SwiGLU."""
    inner = shape.mamba_heads * shape.size
    wide = (2 * inner, shape.hidden)
    narrow = (2 * shape.state + max(64, shape.hidden // 16), inner)
    down = (shape.hidden, shape.intermediate)
    gate_up = (2 * shape.intermediate, shape.hidden)
    for operation, (rows, columns) in (
        ("linear", wide),
        ("linear_parts", narrow),
        ("linear_parts", down),
        ("linear_swiglu", gate_up),
    ):
        # Rows further apart than they are long; numbers that add up to about 1.
        x = make.noise(tokens, columns + 16)[:, :columns]
        weight = make.noise(rows, columns) / math.sqrt(columns)
        outs = rows // 2 if operation == "linear_swiglu" else rows
        moved = (rows * columns + tokens * (columns + outs)) * make.dtype.itemsize
        yield Case(
            f"{tokens} · {rows}×{columns}",
            operation,
            (x, weight),
            moved_bytes=moved,
            operations=2 * tokens * rows * columns,
        )


def quantized_cases(
    make: Maker, shape: Shape, tokens: int, schemes: Iterable[str] = SCHEMES
) -> Iterator[Case]:
    """The same with each scheme, and activations that are quantized for it. A hidden size that
    int4 has no groups for is made larger."""
    inner, hidden = shape.mamba_heads * shape.size, -(-shape.hidden // 32) * 32
    down = -(-shape.intermediate // 32) * 32
    x = make.noise(tokens, hidden + 16)[:, :hidden]
    most = x.abs().amax(1).float() * 2
    moved = tokens * hidden * (make.dtype.itemsize + 1)
    yield Case(f"{tokens}", "quantize_tokens", (x,), moved_bytes=moved)
    yield Case(f"{tokens}, largest given", "quantize_tokens", (x, most))
    for name in schemes:
        for operation, (rows, columns) in (
            ("quantized_linear", (2 * inner, hidden)),
            ("quantized_linear_parts", (hidden, down)),
            ("quantized_linear_swiglu", (2 * shape.intermediate, hidden)),
        ):
            x = make.noise(tokens, columns + 16)[:, :columns]
            weight = quantize(make.noise(rows, columns) / math.sqrt(columns), SCHEMES[name])
            given = quantize_tokens(x) if weight.quantized_activations else x
            outs = rows // 2 if operation == "quantized_linear_swiglu" else rows
            moved = weight.nbytes + tokens * (columns + outs) * make.dtype.itemsize
            yield Case(
                f"{tokens} · {rows}×{columns}, {name}",
                operation,
                (given, weight),
                moved_bytes=moved,
                operations=2 * tokens * rows * columns,
            )


def selection_cases(make: Maker, shape: Shape, tokens: int) -> Iterator[Case]:
    """Timed with the parts that the engine hands it, which are float32 and many if tokens are few;
    and with three parts, whatever the engine does."""
    # Not above: it defines kernels, and whether they are interpreted is said before that.
    from plamo_ref.kernels.linear.triton import parts_for

    state, rank = shape.state, max(64, shape.hidden // 16)
    width, inner = 2 * state + rank, shape.mamba_heads * shape.size
    params = SelectionParams(
        B_gain=make.noise(state),
        C_gain=make.noise(state),
        dt_gain=make.noise(rank),
        dt_weight=make.noise(shape.mamba_heads, rank) / math.sqrt(rank),
        eps=1e-6,
    )
    parts = parts_for(tokens, width, inner) or 1
    given = make.parts(parts, tokens, width) if parts > 1 else make.noise(1, tokens, width)
    moved = given.nbytes + tokens * (2 * state + shape.mamba_heads) * make.dtype.itemsize
    name = f"{tokens}, {parts} parts" if parts > 1 else f"{tokens}"
    yield Case(name, "selection", (given, params), moved_bytes=moved)
    yield Case(f"{tokens}, 3 parts", "selection", (make.parts(3, tokens, width), params))
