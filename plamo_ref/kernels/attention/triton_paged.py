# mypy: disallow-untyped-defs=False
"""What the two attention kernels share: a tile of keys and values, found through the block table.

A load through a table is two loads in a row, and Triton copies ahead only what it can address
ahead. So each iteration takes the blocks that the one before it has looked up, and looks up those
of the next one; the keys and values themselves then travel several iterations ahead.

Invariant: `begin` of a tile is a multiple of BLOCK_SIZE if the tile is whole blocks. Then which
entry and which line of the block a key has does not change from tile to tile.
"""

import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.errors import KernelError
from plamo_ref.kernels.linear.triton_numbers import numbers
from plamo_ref.quantization.weight import FP8


@triton.jit
def first_of_tile(low, KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Where the tiles begin whose first key to be seen is `low`."""
    if KEYS % BLOCK_SIZE == 0:
        return low // BLOCK_SIZE * BLOCK_SIZE
    return low


@triton.jit
def find_blocks(table, begin, end, KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """The physical blocks of keys begin … begin + KEYS - 1 (those before `end`). table [M] is
    counted from logical block 0."""
    j = tl.arange(0, KEYS)
    if KEYS % BLOCK_SIZE == 0:
        entry = table + begin // BLOCK_SIZE + j // BLOCK_SIZE
    else:
        entry = table + (begin + j) // BLOCK_SIZE
    return tl.load(entry, mask=begin + j < end, other=0).to(tl.int32)


@triton.jit
def load_tile(
    keys_ptr,
    values_ptr,
    blocks,
    begin,
    low,
    end,
    group,
    GROUPS: tl.constexpr,
    P: tl.constexpr,
    BLOCK_P: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KIND: tl.constexpr,
    DECODE: tl.constexpr,
):
    """Keys [P, KEYS] and values [KEYS, P] of one KV head; outside low … end - 1 they are 0.
    As numbers of a kind; e4m3 is decoded here if the GPU does not have it.

    Both are loaded in the order in which they lie and share their addresses; the matrix unit reads
    the keys transposed.
    """
    j, p = tl.arange(0, KEYS), tl.arange(0, BLOCK_P)
    line = j % BLOCK_SIZE if KEYS % BLOCK_SIZE == 0 else (begin + j) % BLOCK_SIZE
    inside = (begin + j >= low) & (begin + j < end)
    inside = inside[:, None]
    if P != BLOCK_P:
        inside = inside & (p < P)[None, :]
    place = blocks.to(tl.int64) * (BLOCK_SIZE * GROUPS * P) + (line * GROUPS + group) * P
    place = place[:, None] + p[None, :]
    keys = tl.load(keys_ptr + place, mask=inside, other=0.0)
    values = tl.load(values_ptr + place, mask=inside, other=0.0)
    return tl.trans(numbers(keys, KIND, DECODE)), numbers(values, KIND, DECODE)


def check_paged(
    name: str,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    first_block: Tensor,
    seq_lens: Tensor,
) -> None:
    """Raises KernelError if the arguments of an attention do not fit together."""
    requests = block_table.shape[0]
    if not (keys.shape == values.shape and keys.is_contiguous() and values.is_contiguous()):
        raise KernelError(
            f"{name}: keys {list(keys.shape)} and values {list(values.shape)} must be "
            "contiguous and of one shape"
        )
    if not (q.shape[2] == keys.shape[3] and q.shape[1] % keys.shape[2] == 0):
        raise KernelError(
            f"{name}: q {list(q.shape)} does not fit keys [blocks, block_size, KV heads, P] "
            f"{list(keys.shape)}"
        )
    if keys.dtype not in (q.dtype, FP8):
        raise KernelError(f"{name}: q is {q.dtype}, the cache {keys.dtype}")
    if not (block_table.stride(1) == 1 and first_block.shape == seq_lens.shape == (requests,)):
        raise KernelError(
            f"{name}: block_table {list(block_table.shape)}, first_block "
            f"{list(first_block.shape)} and seq_lens {list(seq_lens.shape)} do not fit together"
        )
