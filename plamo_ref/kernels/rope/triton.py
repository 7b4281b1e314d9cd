# mypy: disallow-untyped-defs=False
"""QK-norm, RoPE and the write of keys and values into their blocks: each element of qkv read once.
Before that, once a step, the tables of cosines and sines.

Formula and twin: plamo_ref/kernels/rope/twin.py.

Invariant: rows that are not in slot_mapping are not touched. The arithmetic is float32 and rounded
where the published model rounds: after the norm, and in the result.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.config import QK_NORM_EPS
from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import (
    Config,
    launch,
    pick,
    power_of_two,
    ready,
    with_unit_stride,
)
from plamo_ref.kernels.linear.triton_numbers import as_stored, encode_fp8
from plamo_ref.kernels.norm.triton import load_parts
from plamo_ref.quantization.weight import FP8

# Size: tokens. A block is heads of one token: one at a time for a few tokens, so that the device
# has enough programs; more when tokens alone are enough.
QK_CONFIGS = (
    Config(up_to=64, block=2, warps=1),
    Config(up_to=1 << 30, block=8, warps=4),
)
ROPE_CONFIG = Config(up_to=1 << 30, block=1, warps=1)


@triton.jit(do_not_specialize=["T"], do_not_specialize_on_alignment=["positions_ptr"])
def rope_kernel(
    positions_ptr,
    out_ptr,
    T,
    LOG2_THETA: tl.constexpr,  # as an argument it would arrive in float32
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """cos and sin of one token's angles."""
    token, i = tl.program_id(0), tl.arange(0, BLOCK)
    ready(PDL)
    position = tl.load(positions_ptr + token).to(tl.float64)
    turns = position * tl.exp2(i.to(tl.float64) * (-LOG2_THETA / HALF)) * 0.15915494309189535
    # Whole turns go in float64; what is left is small enough for float32.
    angle = ((turns - tl.floor(turns)) * 6.283185307179586).to(tl.float32)
    out = out_ptr + token.to(tl.int64) * HALF + i
    tl.store(out, tl.cos(angle).to(out_ptr.dtype.element_ty), mask=i < HALF)
    tl.store(out + T * HALF, tl.sin(angle).to(out_ptr.dtype.element_ty), mask=i < HALF)


def rope_tables(
    positions: Tensor, head_size: int, theta: float, dtype: torch.dtype, *, pdl: bool = False
) -> Tensor:
    """cos and sin of positions [T] · theta^(-2i/P), stacked: [2, T, 1, P/2]. As the twin."""
    tokens, half = positions.shape[0], head_size // 2
    out = torch.empty((2, tokens, 1, half), dtype=dtype, device=positions.device)
    launch(
        rope_kernel,
        (tokens,),
        positions,
        out,
        tokens,
        config=ROPE_CONFIG,
        LOG2_THETA=math.log2(theta),
        HALF=half,
        BLOCK=power_of_two(half),
        PDL=pdl,
    )
    return out


@triton.jit
def as_kept(x, FP8: tl.constexpr, ENCODE: tl.constexpr):
    """x as the cache keeps it: see attention/narrow.py."""
    if FP8:
        wide = tl.minimum(tl.maximum(x.to(tl.float32), -448.0), 448.0)
        kept = encode_fp8(wide) if ENCODE else wide.to(tl.float8e4nv)
    else:
        kept = x
    return kept


@triton.jit(do_not_specialize_on_alignment=["mapping_ptr"])
def qk_norm_rope_kernel(
    qkv_ptr,
    q_gain_ptr,
    k_gain_ptr,
    cos_ptr,
    sin_ptr,
    mapping_ptr,
    q_ptr,
    keys_ptr,
    values_ptr,
    qkv_stride_part,
    qkv_stride,
    eps,
    PARTS: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,  # half a head, rounded up
    HEADS: tl.constexpr,
    PDL: tl.constexpr,
    FP8: tl.constexpr,
    ENCODE: tl.constexpr,
):
    """HEADS heads of one token, in the order of qkv: queries, keys, values."""
    HALF: tl.constexpr = P // 2
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    col = tl.arange(0, BLOCK_P)[None, :]
    is_q, is_k, is_v = head < H, (head >= H) & (head < H + G), head >= H + G
    inside = (head < H + 2 * G) & (col < HALF)

    q_gain, k_gain = q_gain_ptr + head * P + col, k_gain_ptr + (head - H) * P + col
    in_q, in_k = is_q & inside, is_k & inside
    gain_1 = tl.load(q_gain, mask=in_q, other=0.0) + tl.load(k_gain, mask=in_k, other=0.0)
    gain_2 = tl.load(q_gain + HALF, mask=in_q, other=0.0)
    gain_2 += tl.load(k_gain + HALF, mask=in_k, other=0.0)

    ready(PDL)
    cos = tl.load(cos_ptr + token * HALF + col, mask=col < HALF, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + token * HALF + col, mask=col < HALF, other=0.0).to(tl.float32)
    # The pair (i, i + P/2) rotates together: a tile for each half.
    dtype = q_ptr.dtype.element_ty
    source = qkv_ptr + token * qkv_stride + head * P + col
    raw_1 = load_parts(source, inside, PARTS, qkv_stride_part).to(dtype)
    raw_2 = load_parts(source + HALF, inside, PARTS, qkv_stride_part).to(dtype)
    x1, x2 = raw_1.to(tl.float32), raw_2.to(tl.float32)
    squares = tl.sum(x1 * x1, axis=1, keep_dims=True) + tl.sum(x2 * x2, axis=1, keep_dims=True)
    scale = tl.rsqrt(squares / P + eps)
    x1 = (x1 * scale).to(dtype).to(tl.float32) * gain_1.to(tl.float32)
    x2 = (x2 * scale).to(dtype).to(tl.float32) * gain_2.to(tl.float32)

    y1 = (x1 * cos - x2 * sin).to(dtype)
    y2 = (x2 * cos + x1 * sin).to(dtype)

    q = q_ptr + (token * H + head) * P + col
    tl.store(q, y1, mask=in_q)
    tl.store(q + HALF, y2, mask=in_q)
    slot = tl.load(mapping_ptr + token).to(tl.int64)
    k = keys_ptr + (slot * G + head - H) * P + col
    tl.store(k, as_kept(y1, FP8, ENCODE), mask=in_k)
    tl.store(k + HALF, as_kept(y2, FP8, ENCODE), mask=in_k)
    v = values_ptr + (slot * G + head - H - G) * P + col
    tl.store(v, as_kept(raw_1, FP8, ENCODE), mask=is_v & inside)
    tl.store(v + HALF, as_kept(raw_2, FP8, ENCODE), mask=is_v & inside)


def qk_norm_rope_write(
    qkv: Tensor,
    q_gain: Tensor,
    k_gain: Tensor,
    tables: Tensor,
    keys: Tensor,
    values: Tensor,
    slot_mapping: Tensor,
    *,
    pdl: bool = False,
) -> Tensor:
    """As the twin: changes keys and values in place and returns the queries [T, H, P]."""
    parts = qkv if qkv.dim() == 3 else qkv[None]
    (heads, size), kv_heads, tokens = q_gain.shape, k_gain.shape[0], parts.shape[1]
    width = (heads + 2 * kv_heads) * size
    if not (parts.shape[2] == width and size % 2 == 0 and k_gain.shape[1] == size):
        raise KernelError(
            f"qk_norm_rope_write: qkv {list(qkv.shape)} does not hold {heads} queries, "
            f"{kv_heads} keys and {kv_heads} values of size {size} for each token"
        )
    if not (tables.shape == (2, tokens, 1, size // 2) and slot_mapping.shape == (tokens,)):
        raise KernelError(
            f"qk_norm_rope_write: tables {list(tables.shape)} and slot_mapping "
            f"{list(slot_mapping.shape)} do not fit {tokens} tokens of head size {size}"
        )
    if not (keys.shape[2:] == (kv_heads, size) and keys.is_contiguous() and values.is_contiguous()):
        raise KernelError(
            f"qk_norm_rope_write: the cache is {list(keys.shape)}, not contiguous "
            f"[blocks, block_size, {kv_heads}, {size}]"
        )
    parts, tables = with_unit_stride(parts), tables.contiguous()
    q = torch.empty((tokens, heads, size), dtype=q_gain.dtype, device=qkv.device)
    is_fp8 = keys.dtype == FP8
    (keys, encode), (values, _) = as_stored(keys), as_stored(values)
    config = pick(QK_CONFIGS, tokens)
    launch(
        qk_norm_rope_kernel,
        (tokens, triton.cdiv(heads + 2 * kv_heads, config.block)),
        parts,
        q_gain.contiguous(),
        k_gain.contiguous(),
        tables[0],
        tables[1],
        slot_mapping,
        q,
        keys,
        values,
        parts.stride(0),
        parts.stride(1),
        QK_NORM_EPS,
        config=config,
        H=heads,
        G=kv_heads,
        P=size,
        BLOCK_P=power_of_two(size // 2),
        HEADS=config.block,
        PARTS=parts.shape[0],
        PDL=pdl,
        FP8=is_fp8,
        ENCODE=encode,
    )
    return q
