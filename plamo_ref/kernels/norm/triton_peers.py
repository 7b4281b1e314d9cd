# mypy: disallow-untyped-defs=False
"""Sums over the ranks of a model, made by the kernel that reads them.

A rank has a memory that all ranks can read and write: flags [ranks, rows], then numbers [2, rows,
pitch]. Each row is summed by one program on every rank, which

    puts its own part into its own memory, and says so in everybody's flags;
    waits until everybody has said so;
    reads everybody's part, and adds all of them in the order of the ranks.

A flag counts how often a rank has put something there, so nothing is ever set back, and a recorded
step can be replayed. Turns take the two halves of the memory in turn: who puts something there for
turn n has seen everybody's flags of turn n - 1, so everybody is through with turn n - 2.

Invariant: all ranks have bit by bit the same sum. Launches of all ranks have the same rows in the
same order, and no more of them than programs fit a device at once: who waits holds up nobody.
Twin: the ranks add the parts (`Group.add`), then `add_norm`.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from plamo_ref.kernels.launch import launch, pick, power_of_two, ready, with_unit_stride
from plamo_ref.kernels.norm.triton import NORM_CONFIGS, load_parts, normalise

MOST_ROWS = 256  # programs of 16 warps, two of which a multiprocessor holds, that are not too many


@dataclass(frozen=True)
class Memories:
    """Those of all ranks, as one of them sees them.

    Attributes:
        own: [words] int64, this rank's.
        distances: [ranks] int64 on the same device: from `own` to each rank's, in units of 16
            bytes, so that the compiler knows how they lie.
        rows: flags of each rank; an even number, at most MOST_ROWS.
        pitch: numbers of 4 bytes that a row has room for.
    """

    own: Tensor
    distances: Tensor
    rank: int
    rows: int
    pitch: int

    @property
    def size(self) -> int:
        return len(self.distances)

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """This rank's, behind its flags: [2 · rows · pitch], or twice as many of half the size."""
        return self.own[self.size * self.rows :].view(dtype)


def words(size: int, rows: int, pitch: int) -> int:
    """Of 8 bytes, that the memory of one rank takes."""
    return size * rows + rows * pitch


@triton.jit
def sum_over_ranks(
    x,
    flags_ptr,
    numbers_ptr,
    distances_ptr,
    row,
    col,
    inside,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    PITCH: tl.constexpr,
):
    """x [BLOCK]: this rank's part of a row, rounded as it will be read → the sum, in float32."""
    turn = tl.load(flags_ptr + RANK * ROWS + row) + 1
    # A row's place is the same for all dtypes, or a turn of one would lie on another's last turn.
    place = ((turn % 2) * ROWS + row) * (PITCH * (32 // x.dtype.primitive_bitwidth)) + col
    tl.store(numbers_ptr + place, x, mask=inside)
    # All threads have put their numbers there, and have read the flag, before one of them says so.
    tl.debug_barrier()
    tl.store(flags_ptr + RANK * ROWS + row, turn)
    for peer in tl.static_range(SIZE):
        if peer != RANK:
            there = flags_ptr + tl.load(distances_ptr + peer) * 2 + RANK * ROWS + row
            tl.atomic_max(there, turn, sem="release", scope="sys")  # see Peers.let_go
    for peer in tl.static_range(SIZE):
        if peer != RANK:
            seen = tl.atomic_add(flags_ptr + peer * ROWS + row, 0, sem="acquire", scope="sys")
            while seen < turn:
                seen = tl.atomic_add(flags_ptr + peer * ROWS + row, 0, sem="acquire", scope="sys")
    tl.debug_barrier()
    total = tl.zeros_like(x).to(tl.float32)
    for peer in tl.static_range(SIZE):
        part = x
        if peer != RANK:
            distance = tl.load(distances_ptr + peer) * (128 // x.dtype.primitive_bitwidth)
            there = numbers_ptr + distance + place
            part = tl.load(there, mask=inside, other=0.0, cache_modifier=".cg")
        total += part.to(tl.float32)
    return total


@triton.jit
def peer_add_norm_kernel(
    residual_ptr,
    x_ptr,
    flags_ptr,
    numbers_ptr,
    distances_ptr,
    post_ptr,
    pre_ptr,
    sum_ptr,
    out_ptr,
    residual_stride,
    x_stride_part,
    x_stride,
    eps,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    PITCH: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK_D)
    inside = col < D
    post = tl.load(post_ptr + col, mask=inside, other=0.0).to(tl.float32)
    pre = tl.load(pre_ptr + col, mask=inside, other=0.0).to(tl.float32)
    ready(PDL)
    residual = tl.load(residual_ptr + row * residual_stride + col, mask=inside, other=0.0)
    dtype = residual.dtype
    own = load_parts(x_ptr + row * x_stride + col, inside, PARTS, x_stride_part)
    own = own.to(x_ptr.dtype.element_ty)
    x = sum_over_ranks(
        own, flags_ptr, numbers_ptr, distances_ptr, row, col, inside, RANK, SIZE, ROWS, PITCH
    ).to(dtype)
    normed = normalise(x.to(tl.float32), D, eps).to(dtype).to(tl.float32) * post
    total = (residual.to(tl.float32) + normed.to(dtype).to(tl.float32)).to(dtype)
    tl.store(sum_ptr + row * D + col, total, mask=inside)
    normed = normalise(total.to(tl.float32), D, eps).to(dtype).to(tl.float32) * pre
    tl.store(out_ptr + row * D + col, normed.to(dtype), mask=inside)


def peer_add_norm(
    residual: Tensor,
    x: Tensor,
    post_gain: Tensor,
    pre_gain: Tensor,
    eps: float,
    *,
    memories: Memories,
    pdl: bool = False,
) -> tuple[Tensor, Tensor]:
    """`add_norm` of what all ranks have in x: parts [parts, T, D], with T at most MOST_ROWS."""
    rows, size = residual.shape
    residual, x = with_unit_stride(residual), with_unit_stride(x)
    total = torch.empty((rows, size), dtype=residual.dtype, device=x.device)
    out = torch.empty_like(total)
    launch(
        peer_add_norm_kernel,
        (rows,),
        residual,
        x,
        memories.own,
        memories.numbers(x.dtype),
        memories.distances,
        post_gain.contiguous(),
        pre_gain.contiguous(),
        total,
        out,
        residual.stride(0),
        x.stride(0),
        x.stride(1),
        eps,
        config=pick(NORM_CONFIGS, size),
        PARTS=x.shape[0],
        D=size,
        BLOCK_D=power_of_two(size),
        RANK=memories.rank,
        SIZE=memories.size,
        ROWS=memories.rows,
        PITCH=memories.pitch,
        PDL=pdl,
    )
    return total, out


@triton.jit
def peer_sum_kernel(
    x_ptr,
    flags_ptr,
    numbers_ptr,
    distances_ptr,
    out_ptr,
    x_stride_part,
    x_stride,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RANK: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    PITCH: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK_D)
    inside = col < D
    ready(PDL)
    own = load_parts(x_ptr + row * x_stride + col, inside, PARTS, x_stride_part)
    own = own.to(x_ptr.dtype.element_ty)
    x = sum_over_ranks(
        own, flags_ptr, numbers_ptr, distances_ptr, row, col, inside, RANK, SIZE, ROWS, PITCH
    )
    tl.store(out_ptr + row * D + col, x.to(out_ptr.dtype.element_ty), mask=inside)


def peer_sum(x: Tensor, *, memories: Memories, pdl: bool = False) -> Tensor:
    """What all ranks have in x, parts [parts, T, D] with T at most MOST_ROWS, added: [1, T, D].

    For readers that have several programs a row.
    """
    x = with_unit_stride(x)
    _, rows, size = x.shape
    out = torch.empty((1, rows, size), dtype=x.dtype, device=x.device)
    launch(
        peer_sum_kernel,
        (rows,),
        x,
        memories.own,
        memories.numbers(x.dtype),
        memories.distances,
        out,
        x.stride(0),
        x.stride(1),
        config=pick(NORM_CONFIGS, size),
        PARTS=x.shape[0],
        D=size,
        BLOCK_D=power_of_two(size),
        RANK=memories.rank,
        SIZE=memories.size,
        ROWS=memories.rows,
        PITCH=memories.pitch,
        PDL=pdl,
    )
    return out
