# mypy: disallow-untyped-defs=False
"""One query a request over keys and values in blocks, the keys shared out among several programs.

Formula and twin: plamo_ref/kernels/attention/twin.py. With m a running maximum of the scores s:

    l = Σ exp(s - m),  o = Σ exp(s - m) v / l;   parts (m_i, l_i, o_i) join by the weights
    exp(m_i - max m) l_i

Invariant: keys outside the window or past the end are never loaded, whatever lies there. How many
parts there are depends on shapes alone, never on the lengths: those stay on the device.
All query heads of one KV head are one tile, so keys and values are read once.
Source: Dao et al., "Flash-Decoding" (2023).
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.attention.triton_paged import (
    check_paged,
    find_blocks,
    first_of_tile,
    load_tile,
)
from plamo_ref.kernels.launch import Config, launch, pick, power_of_two, precision, ready
from plamo_ref.kernels.linear.triton_numbers import as_stored

# Size: P, the head size. A tile is keys; a block is one KV head.
DECODE_CONFIGS = (
    Config(up_to=128, block=1, warps=4, stages=3, tile=64),
    Config(up_to=1 << 20, block=1, warps=4, stages=2, tile=32),
)
# Elements twice as wide, and each operand of tf32x3 in two halves: smaller tiles.
WIDE_DECODE_CONFIGS = (Config(up_to=1 << 20, block=1, warps=4, stages=2, tile=32),)
JOIN_CONFIG = Config(up_to=1 << 30, block=1, warps=2)
PROGRAMS = 132  # wanted in all: one for each multiprocessor of a large GPU
KEYS_OF_A_PART = 128  # at least: less is not worth joining


@triton.jit(
    do_not_specialize=["table_stride"],
    do_not_specialize_on_alignment=["table_ptr", "first_ptr", "lens_ptr"],
)
def decode_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    table_ptr,
    first_ptr,
    lens_ptr,
    out_ptr,
    parts_ptr,
    q_stride,
    table_stride,
    scale,  # log2(e) / sqrt(P): exp2 is what the hardware has
    window,
    WINDOWED: tl.constexpr,
    PARTS: tl.constexpr,
    GROUPS: tl.constexpr,
    HEADS: tl.constexpr,  # query heads of one KV head
    P: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    DECODE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One part of the keys for the query heads of one KV head of one request."""
    group, part, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    h, p, j = tl.arange(0, BLOCK_HEADS), tl.arange(0, BLOCK_P), tl.arange(0, TILE)
    own = (h < HEADS)[:, None] & (p < P)[None, :]
    ready(PDL)
    q_at = q_ptr + row * q_stride + (group * HEADS + h)[:, None] * P + p[None, :]
    q = tl.load(q_at, mask=own, other=0.0)

    length = tl.load(lens_ptr + row).to(tl.int32)
    low = 0
    if WINDOWED:
        low = tl.maximum(length - 1 - window, 0)  # W earlier keys and the token's own
    # Parts begin at multiples of TILE, so that only the first and last have an incomplete tile.
    begin = first_of_tile(low, TILE, BLOCK_SIZE)
    share = tl.cdiv(tl.cdiv(length - begin, TILE), PARTS) * TILE
    begin += part * share
    end = tl.minimum(begin + share, length)

    table = table_ptr + row * table_stride - tl.load(first_ptr + row).to(tl.int32)
    blocks = find_blocks(table, begin, end, TILE, BLOCK_SIZE)
    m = tl.full((BLOCK_HEADS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((BLOCK_HEADS,), dtype=tl.float32)
    acc = tl.zeros((BLOCK_HEADS, BLOCK_P), dtype=tl.float32)
    for at in range(begin, end, TILE):
        k, v = load_tile(
            *(keys_ptr, values_ptr, blocks, at, low, end, group),
            *(GROUPS, P, BLOCK_P, TILE, BLOCK_SIZE, q.dtype, DECODE),
        )
        blocks = find_blocks(table, at + TILE, end, TILE, BLOCK_SIZE)
        seen = (at + j >= low) & (at + j < end)
        scores = tl.dot(q, k, input_precision=PRECISION)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        # A tile has at least one key that is seen, so the new maximum is finite.
        m_new = tl.maximum(m, tl.max(scores, axis=1) * scale)
        old = tl.exp2(m - m_new)
        weights = tl.exp2(scores * scale - m_new[:, None])
        total = total * old + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(v.dtype), v, acc=acc * old[:, None], input_precision=PRECISION)
        m = m_new

    # A part without keys (and a padding row of length 0) is 0, not 0 / 0.
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    place = (row * GROUPS + group) * HEADS + h
    if PARTS == 1:
        tl.store(
            out_ptr + place[:, None] * P + p[None, :], acc.to(out_ptr.dtype.element_ty), mask=own
        )
    else:
        # [R, H, parts, P + 1]: the part's result, then the logarithm of its weight.
        place = (place * PARTS + part) * (P + 1)
        tl.store(parts_ptr + place[:, None] + p[None, :], acc, mask=own)
        weight = tl.where(total > 0, m + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
        tl.store(parts_ptr + place + P, weight, mask=h < HEADS)


@triton.jit
def join_kernel(
    parts_ptr,
    out_ptr,
    PARTS: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
    PDL: tl.constexpr,
):
    """The parts of one query head: an average by their weights."""
    ready(PDL)
    head = tl.program_id(0).to(tl.int64)
    part, p = tl.arange(0, BLOCK_PARTS), tl.arange(0, BLOCK_P)
    source = parts_ptr + (head * PARTS + part) * (P + 1)
    weight = tl.load(source + P, mask=part < PARTS, other=float("-inf"))
    most = tl.max(weight, axis=0)
    weight = tl.exp2(weight - tl.where(most > float("-inf"), most, 0.0))
    inside = (part < PARTS)[:, None] & (p < P)[None, :]
    x = tl.load(source[:, None] + p[None, :], mask=inside, other=0.0)
    total = tl.sum(weight, axis=0)
    out = tl.sum(x * weight[:, None], axis=0) / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + head * P + p, out.to(out_ptr.dtype.element_ty), mask=p < P)


def number_of_parts(programs: int, most_keys: int) -> int:
    """Parts of each request's keys, a power of two, from what the host knows without waiting."""
    wanted = min(PROGRAMS // max(programs, 1), most_keys // KEYS_OF_A_PART)
    return 1 << max(wanted, 1).bit_length() - 1


def paged_decode(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    first_block: Tensor,
    seq_lens: Tensor,
    window: int | None,
    *,
    pdl: bool = False,
) -> Tensor:
    """One query a request. Arguments as of the twin → [R, H, P]."""
    check_paged("paged_decode", q, keys, values, block_table, first_block, seq_lens)
    (requests, heads, size), (block_size, groups) = q.shape, keys.shape[1:3]
    config = pick(WIDE_DECODE_CONFIGS if q.dtype == torch.float32 else DECODE_CONFIGS, size)
    most_keys = block_table.shape[1] * block_size
    if window is not None:
        most_keys = min(most_keys, window + 1)
    parts = number_of_parts(requests * groups, most_keys)
    q = q.contiguous()
    (keys, decode), (values, _) = as_stored(keys), as_stored(values)
    out = torch.empty_like(q)
    shape = (requests, heads, parts, size + 1) if parts > 1 else (1,)
    partial = torch.empty(shape, dtype=torch.float32, device=q.device)
    sizes = {"PARTS": parts, "P": size, "BLOCK_P": power_of_two(size, 16), "PDL": pdl}
    launch(
        decode_kernel,
        (groups, parts, requests),
        q,
        keys,
        values,
        block_table,
        first_block,
        seq_lens,
        out,
        partial,
        q.stride(0),
        block_table.stride(0),
        math.log2(math.e) / math.sqrt(size),
        window or 0,
        config=config,
        WINDOWED=window is not None,
        GROUPS=groups,
        HEADS=heads // groups,
        BLOCK_SIZE=block_size,
        BLOCK_HEADS=power_of_two(heads // groups, 16),
        TILE=config.tile,
        PRECISION=precision(q.dtype),
        DECODE=decode,
        **sizes,
    )
    if parts > 1:
        blocks = {"BLOCK_PARTS": parts}
        launch(
            join_kernel, (requests * heads,), partial, out, config=JOIN_CONFIG, **sizes, **blocks
        )
    return out
