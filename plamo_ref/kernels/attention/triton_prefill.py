# mypy: disallow-untyped-defs=False
"""Attention of several queries a request over keys and values in blocks.

Formula and twin: plamo_ref/kernels/attention/twin.py; running maximum as in triton_decode.py; how
tiles of keys are found: triton_paged.py.

A tile has rows: a few queries, each with several of the query heads that share a KV head. 128 rows
are 16 queries × 8 heads: they use each key 128 times, and together see 15 keys more than one query
alone, not 127. Of a window of 2048 keys that wastes 3 % where whole tiles of queries waste 6 %, and
short prompts gain more. Fewer rows would be limited by L2: a row does 4 · P operations with the
4 · P bytes of a key and its value, so R rows need 1 / R bytes an operation; 600 TFLOP/s are
4.7 TB/s with 128 rows, about what L2 gives, and 9.4 TB/s with 64.

Invariant: keys that no query of a tile sees are never loaded, whatever lies there. The host knows
the number of tokens and of requests, not their lengths: each program looks up whose it is.
Source: Dao, "FlashAttention-2" (2023).
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
from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.launch import (
    Config,
    find_request,
    launch,
    pick,
    power_of_two,
    precision,
)
from plamo_ref.kernels.linear.triton_numbers import as_stored

# Size: P, the head size. A block is rows (queries × heads), a tile keys.
PREFILL_CONFIGS = (
    Config(up_to=128, block=128, warps=8, stages=3, tile=64),
    Config(up_to=1 << 20, block=64, warps=8, stages=1, tile=64),
)
# Elements twice as wide, and each operand of tf32x3 in two halves: smaller tiles.
WIDE_PREFILL_CONFIGS = (Config(up_to=1 << 20, block=32, warps=4, stages=1, tile=16),)


@triton.jit
def is_seen(back, window, WINDOWED: tl.constexpr):
    """Whether a query sees the key `back` positions before it. As an unsigned number a key of the
    future is very far back, so that one comparison is enough."""
    if WINDOWED:
        return back.to(tl.uint32, bitcast=True) <= window.to(tl.uint32)
    return back >= 0


@triton.jit(
    do_not_specialize=["requests", "table_stride", "window"],
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
    table_stride,
    scale,  # log2(e) / sqrt(P): exp2 is what the hardware has
    window,
    WINDOWED: tl.constexpr,
    GROUPS: tl.constexpr,
    HEADS: tl.constexpr,  # query heads of one KV head
    PACK: tl.constexpr,  # of them in one tile
    P: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
    DECODE: tl.constexpr,
):
    """One tile: ROWS // PACK queries of one request, PACK heads."""
    QUERIES: tl.constexpr = ROWS // PACK
    head = tl.program_id(0) * PACK
    # Later tiles of a prompt see more keys. The longest first: the last to end are short ones.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    row, offset = find_request(starts_ptr, requests, tile, QUERIES)
    start_row = tl.load(starts_ptr + row).to(tl.int64)
    count = (tl.load(starts_ptr + row + 1) - start_row).to(tl.int32)
    if offset < count:
        length = tl.load(lens_ptr + row).to(tl.int32)
        first = tl.load(first_ptr + row).to(tl.int32)
        table = table_ptr + row.to(tl.int64) * table_stride - first
        # Tokens of the step are the last of the request. Positions of the tile's first and last
        # query decide which keys are seen by any of them, and which by all.
        query = length - count + offset
        end = tl.minimum(query + QUERIES, length)
        low, all_from = 0, 0
        if WINDOWED:
            low = tl.maximum(query - window, 0)
            all_from = end - 1 - window
        begin = first_of_tile(low, KEYS, BLOCK_SIZE)
        blocks = find_blocks(table, begin, end, KEYS, BLOCK_SIZE)

        i, j, p = tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, BLOCK_P)
        live = (offset + i // PACK < count)[:, None]
        if P != BLOCK_P:
            live = live & (p < P)[None, :]
        corner = ((start_row + offset) * GROUPS * HEADS + head) * P
        place = (i // PACK * GROUPS * HEADS + i % PACK)[:, None] * P + p[None, :]
        q = tl.load(q_ptr + corner + place, mask=live, other=0.0)
        # A finite start: a query's first tiles may hold no key that it sees, and the difference
        # of two infinities is NaN.
        m = tl.full((ROWS,), -1e30, dtype=tl.float32)
        total = tl.zeros((ROWS,), dtype=tl.float32)
        acc = tl.zeros((ROWS, BLOCK_P), dtype=tl.float32)
        for at in range(begin, end, KEYS):
            k, v = load_tile(
                *(keys_ptr, values_ptr, blocks, at, low, end, head // HEADS),
                *(GROUPS, P, BLOCK_P, KEYS, BLOCK_SIZE, q.dtype, DECODE),
            )
            blocks = find_blocks(table, at + KEYS, end, KEYS, BLOCK_SIZE)
            scores = tl.dot(q, k, input_precision=PRECISION)
            # Between the edges all queries see all keys: no mask.
            if (at < all_from) | (at + KEYS > query + 1):
                back = (query + i // PACK - at)[:, None] - j[None, :]
                scores = tl.where(is_seen(back, window, WINDOWED), scores, float("-inf"))
            # The scale is applied with the difference: one multiply-add a score.
            m_new = tl.maximum(m, tl.max(scores, axis=1) * scale)
            old = tl.exp2(m - m_new)
            weights = tl.exp2(scores * scale - m_new[:, None])
            total = total * old + tl.sum(weights, axis=1)
            acc = tl.dot(weights.to(v.dtype), v, acc=acc * old[:, None], input_precision=PRECISION)
            m = m_new
        acc = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out_ptr + corner + place, acc.to(out_ptr.dtype.element_ty), mask=live)


def heads_of_a_tile(share: int, rows: int) -> int:
    """Of the `share` query heads of a KV head: the largest power of two that divides them."""
    return min(share & -share, rows)


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
    if query_start_loc.shape != (requests + 1,):
        raise KernelError(
            f"paged_prefill: query_start_loc is {list(query_start_loc.shape)}, not [{requests + 1}]"
        )
    config = pick(WIDE_PREFILL_CONFIGS if q.dtype == torch.float32 else PREFILL_CONFIGS, size)
    share = heads // groups
    pack = heads_of_a_tile(share, config.block)
    q = q.contiguous()
    (keys, decode), (values, _) = as_stored(keys), as_stored(values)
    out = torch.empty_like(q)
    launch(
        prefill_kernel,
        (heads // pack, tokens // (config.block // pack) + requests),
        q,
        keys,
        values,
        block_table,
        first_block,
        seq_lens,
        query_start_loc,
        out,
        requests,
        block_table.stride(0),
        math.log2(math.e) / math.sqrt(size),
        window or 0,
        config=config,
        WINDOWED=window is not None,
        GROUPS=groups,
        HEADS=share,
        PACK=pack,
        P=size,
        BLOCK_SIZE=block_size,
        BLOCK_P=power_of_two(size, 16),
        ROWS=config.block,
        KEYS=config.tile,
        PRECISION=precision(q.dtype),
        DECODE=decode,
    )
    return out
