# mypy: disallow-untyped-defs=False
"""Numbers of a narrow state within a kernel: read, rounded to the nearest or by chance.

Formula and twin: plamo_ref/kernels/ssm/narrow.py. Where a GPU has no e4m3, and where chance rounds,
its bytes are made with integers alone.

Invariant: the same bits of chance as the twin's, so that of a state that float32 gives to its last
bit both keep the same numbers.
"""

import triton
import triton.language as tl

from plamo_ref.kernels.linear.triton_numbers import decode_fp8, encode_fp8

ROUNDER = tl.constexpr(12582912.0)  # a float32 next to which the numbers are one apart
TINY = tl.constexpr(1e-30)


@triton.jit
def widened(kept, FORMAT: tl.constexpr, DECODE: tl.constexpr):
    """What is kept, as float32; still to be multiplied with its scale."""
    if FORMAT != "fp8":
        state = kept.to(tl.float32)
    elif DECODE:
        state = decode_fp8(kept)
    else:
        state = kept.to(tl.float8e4nv, bitcast=True).to(tl.float32)
    return state


@triton.jit
def scale_of(most, FORMAT: tl.constexpr):
    """From max |S| the scale and what S is multiplied with."""
    largest: tl.constexpr = 448.0 if FORMAT == "fp8" else 127.0
    most = tl.maximum(most, TINY)
    return most / largest, largest / most


@triton.jit
def mix(x):
    """A hash of 32 bits: see the twin."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def chances(a, position, element):
    """16 bits for each element of a head with A = a at a position, as uint32."""
    key = mix(position.to(tl.uint32)) ^ a.to(tl.float32).to(tl.uint32, bitcast=True)
    return mix(mix(key) + element.to(tl.uint32)) >> 16


@triton.jit
def narrowed(x, drawn, FORMAT: tl.constexpr, STOCHASTIC: tl.constexpr, DECODE: tl.constexpr):
    """x, float32, as it is kept; what has a scale is multiplied with its inverse already."""
    if FORMAT == "fp8":
        x = tl.minimum(tl.maximum(x, -448.0), 448.0)
        if STOCHASTIC:
            # As `encode_fp8`, with chance in the place of a half.
            bits = (tl.abs(x) * 7.52316384526264e-37).to(tl.int32, bitcast=True)
            bits = (bits + (drawn << 4).to(tl.int32)) >> 20
            kept = (bits | tl.where(x < 0, 0x80, 0)).to(tl.uint8)
        elif DECODE:
            kept = encode_fp8(x)
        else:
            kept = x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    elif FORMAT == "int8":
        x = tl.minimum(tl.maximum(x, -127.0), 127.0)
        if STOCHASTIC:
            whole = tl.floor(tl.abs(x) + drawn.to(tl.float32) * 1.52587890625e-05)
            kept = tl.where(x < 0, -whole, whole).to(tl.int8)
        else:
            kept = ((x + ROUNDER) - ROUNDER).to(tl.int8)
    else:
        bits = x.to(tl.uint32, bitcast=True)
        if STOCHASTIC:
            bits = (bits + drawn) & 0xFFFF0000
        kept = bits.to(tl.float32, bitcast=True).to(tl.bfloat16)
    return kept


@triton.jit
def store_state(
    state,
    state_ptr,
    inside,
    element,
    scale_ptr,
    a,
    position,
    FORMAT: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    DECODE: tl.constexpr,
):
    """Write a state, float32, as its slot keeps it: all of a head's, if the head has a scale.

    element: the numbers' places within the head; position: tokens that the state has taken in.
    """
    if FORMAT == "plain":
        tl.store(state_ptr, state.to(state_ptr.dtype.element_ty), mask=inside)
    else:
        drawn = 0
        if FORMAT != "bfloat16":
            scale, inverse = scale_of(tl.max(tl.abs(state)), FORMAT)
            state *= inverse
            tl.store(scale_ptr, scale)
        if STOCHASTIC:
            drawn = chances(a, position, element)
        tl.store(state_ptr, narrowed(state, drawn, FORMAT, STOCHASTIC, DECODE), mask=inside)
