# mypy: disallow-untyped-defs=False
"""The largest logit of each row, the columns shared out among many programs.

Twin: `argmax` in plamo_ref/kernels/sample/twin.py.

Invariant: among equal logits the smallest id wins, as in the twin, however the row is cut.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.launch import Config, launch, power_of_two, ready, with_unit_stride

PART_CONFIG = Config(up_to=1 << 30, block=4096, warps=8)  # a block is columns
JOIN_CONFIG = Config(up_to=1 << 30, block=1, warps=1)


@triton.jit
def first_largest(x, place):
    """The largest of x, and the smallest place that has it."""
    top = tl.max(x, axis=0)
    return top, tl.min(tl.where(x == top, place, 2147483647), axis=0)


@triton.jit
def argmax_part_kernel(
    x_ptr, tops_ptr, places_ptr, stride, V, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """The largest of one row's BLOCK columns."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = part * BLOCK + tl.arange(0, BLOCK)
    ready(PDL)
    x = tl.load(x_ptr + row * stride + column, mask=column < V, other=-float("inf"))
    top, place = first_largest(x.to(tl.float32), column)
    at = row * tl.num_programs(1) + part
    tl.store(tops_ptr + at, top)
    tl.store(places_ptr + at, tl.minimum(place, V - 1))


@triton.jit
def argmax_join_kernel(
    tops_ptr, places_ptr, out_ptr, PARTS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """The largest of one row's parts."""
    row, part = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    ready(PDL)
    at = row * PARTS + part
    top = tl.load(tops_ptr + at, mask=part < PARTS, other=-float("inf"))
    place = tl.load(places_ptr + at, mask=part < PARTS, other=2147483647)
    _, best = first_largest(top, place)
    tl.store(out_ptr + row, best.to(tl.int64))


def argmax(logits: Tensor, *, pdl: bool = False) -> Tensor:
    """logits [B, V] → [B] int64."""
    rows, size = logits.shape
    logits = with_unit_stride(logits)
    parts = triton.cdiv(size, PART_CONFIG.block)
    tops = torch.empty((rows, parts), dtype=torch.float32, device=logits.device)
    places = torch.empty((rows, parts), dtype=torch.int32, device=logits.device)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    launch(
        argmax_part_kernel,
        (rows, parts),
        logits,
        tops,
        places,
        logits.stride(0),
        size,
        config=PART_CONFIG,
        BLOCK=PART_CONFIG.block,
        PDL=pdl,
    )
    launch(
        argmax_join_kernel,
        (rows,),
        tops,
        places,
        out,
        config=JOIN_CONFIG,
        PARTS=parts,
        BLOCK=power_of_two(parts),
        PDL=pdl,
    )
    return out
