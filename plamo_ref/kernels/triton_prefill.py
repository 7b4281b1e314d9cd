# mypy: disallow-untyped-defs=False
"""Attention of several queries a request over keys and values in blocks.

Formula and twin: plamo_ref/kernels/paged_attention.py; running maximum as in triton_decode.py.

Invariant: keys that no query of a tile sees are never loaded, whatever lies there. The host knows
the number of tokens and of requests, not their lengths: each program looks up whose it is.
Source: Dao, "FlashAttention-2" (2023).
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.errors import require
from plamo_ref.kernels.triton_decode import check_paged
from plamo_ref.kernels.triton_launch import (
    Config,
    find_request,
    launch,
    pick,
    power_of_two,
    precision,
)

# Size: P, the head size. A block is queries, a tile keys.
PREFILL_CONFIGS = (
    Config(up_to=128, block=128, warps=8, stages=2, tile=64),
    Config(up_to=1 << 20, block=64, warps=8, stages=1, tile=64),
)
# Elements twice as wide, and each operand of tf32x3 in two halves: smaller tiles.
WIDE_PREFILL_CONFIGS = (Config(up_to=1 << 20, block=32, warps=4, stages=1, tile=32),)


@triton.jit(
    do_not_specialize=["requests", "table_stride"],
    do_not_specialize_on_alignment=["table_ptr", "first_ptr", "lens_ptr", "starts_ptr"],
)
def prefill_kernel(
    q_ptr,
    keys_ptr,
    values_ptr,
    table_ptr,
    first_ptr,
    lens_ptr,
    starts_ptr,
    out_ptr,
    requests,
    q_stride,
    table_stride,
    scale,  # log2(e) / sqrt(P): exp2 is what the hardware has
    window,
    WINDOWED: tl.constexpr,
    GROUPS: tl.constexpr,
    HEADS: tl.constexpr,  # query heads of one KV head
    P: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of queries of one request, one head."""
    head = tl.program_id(0)
    row, offset = find_request(starts_ptr, requests, tl.program_id(1), QUERIES)
    start_row = tl.load(starts_ptr + row).to(tl.int64)
    count = (tl.load(starts_ptr + row + 1) - start_row).to(tl.int32)
    if offset < count:
        i, j, p = tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, BLOCK_P)
        length = tl.load(lens_ptr + row).to(tl.int32)
        live = (offset + i < count)[:, None] & (p < P)[None, :]
        line = (start_row + offset + i)[:, None]
        q = tl.load(q_ptr + line * q_stride + head * P + p[None, :], mask=live, other=0.0)

        # Tokens of the step are the last of the request. Tile: positions of its first and last
        # query decide which keys are seen by any of them.
        position = length - count + offset + i
        end = tl.minimum(length - count + offset + QUERIES, length)
        low = 0
        if WINDOWED:
            low = tl.maximum(length - count + offset - window, 0)
        table = table_ptr + row.to(tl.int64) * table_stride
        first = tl.load(first_ptr + row).to(tl.int32)
        group = head // HEADS
        # A finite start: a query's first tiles may hold no key that it sees, and the difference
        # of two infinities is NaN.
        m = tl.full((QUERIES,), -1e30, dtype=tl.float32)
        total = tl.zeros((QUERIES,), dtype=tl.float32)
        acc = tl.zeros((QUERIES, BLOCK_P), dtype=tl.float32)
        for begin in range(low, end, KEYS):
            key = begin + j
            there = key < end
            block = tl.load(table + key // BLOCK_SIZE - first, mask=there, other=0).to(tl.int64)
            place = ((block * BLOCK_SIZE + key % BLOCK_SIZE) * GROUPS + group) * P
            k_in = there[None, :] & (p < P)[:, None]
            k = tl.load(keys_ptr + place[None, :] + p[:, None], mask=k_in, other=0.0)
            v_in = there[:, None] & (p < P)[None, :]
            v = tl.load(values_ptr + place[:, None] + p[None, :], mask=v_in, other=0.0)
            scores = tl.dot(q, k, input_precision=PRECISION) * scale
            seen = key[None, :] <= position[:, None]
            if WINDOWED:
                seen &= key[None, :] >= position[:, None] - window
            scores = tl.where(seen, scores, float("-inf"))
            m_new = tl.maximum(m, tl.max(scores, axis=1))
            old = tl.exp2(m - m_new)
            weights = tl.exp2(scores - m_new[:, None])
            total = total * old + tl.sum(weights, axis=1)
            acc = tl.dot(weights.to(v.dtype), v, acc=acc * old[:, None], input_precision=PRECISION)
            m = m_new
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        out = out_ptr + (line * GROUPS * HEADS + head) * P + p[None, :]
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=live)


def paged_prefill(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    first_block: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    window: int | None,
) -> Tensor:
    """Several queries a request. Arguments as of the twin → [T, H, P]."""
    check_paged("paged_prefill", q, keys, values, block_table, first_block, seq_lens)
    (tokens, heads, size), (block_size, groups) = q.shape, keys.shape[1:3]
    requests = block_table.shape[0]
    require(
        query_start_loc.shape == (requests + 1,),
        f"paged_prefill: query_start_loc is {list(query_start_loc.shape)}, not [{requests + 1}]",
    )
    config = pick(WIDE_PREFILL_CONFIGS if q.dtype == torch.float32 else PREFILL_CONFIGS, size)
    q = q.contiguous()
    out = torch.empty_like(q)
    launch(
        prefill_kernel,
        (heads, tokens // config.block + requests),
        q,
        keys,
        values,
        block_table,
        first_block,
        seq_lens,
        query_start_loc,
        out,
        requests,
        q.stride(0),
        block_table.stride(0),
        math.log2(math.e) / math.sqrt(size),
        window or 0,
        config=config,
        WINDOWED=window is not None,
        GROUPS=groups,
        HEADS=heads // groups,
        P=size,
        BLOCK_SIZE=block_size,
        BLOCK_P=power_of_two(size, 16),
        QUERIES=config.block,
        KEYS=config.tile,
        PRECISION=precision(q.dtype),
    )
    return out
