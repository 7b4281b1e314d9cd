"""The operations on the cache, as the compiler sees them: boxes with a name that it does not open.

A compiled layer computes everything else itself and calls these in between. Each takes the whole
batch of a step, decodes and prefills. The batch comes as two tensors, `words` and `counts`: their
contents say all that can differ between two steps of equally many tokens, and a compiler looks at
shapes, never at contents.

Invariant: `unpack` undoes `pack`; an operation changes only the cache that its `mutates_args` name,
in place, and returns a contiguous tensor of its own.
Built in notebooks/12_torch_compile_fusion.ipynb.
"""

from dataclasses import dataclass, replace
from functools import cache as remember

import torch
from torch import Tensor

from plamo_ref.batch import AttentionCache, ForwardBatch, GroupBatch
from plamo_ref.config import LayerKind
from plamo_ref.kernels.ssm import ScanInputs, ScanParams
from plamo_ref.kernels.table import TORCH, Kernels, triton_table
from plamo_ref.model import attend, convolve, scan

GROUP_KINDS: tuple[LayerKind, ...] = ("full", "sliding_window")


@dataclass(frozen=True, kw_only=True)
class PackedBatch(ForwardBatch):
    """A batch that also has itself as two tensors."""

    words: Tensor  # [L] int64 on the device: everything, one after the other
    counts: Tensor  # [7] int64 on the CPU: how long the pieces are, and the batch's numbers


def pack(batch: ForwardBatch) -> PackedBatch:
    """The same batch with its two tensors. Groups are in the order of GROUP_KINDS."""
    # Copies, so that the compiler sees the same kind of tensor wherever the batch was made.
    groups = {
        kind: replace(batch.groups[kind], slot_mapping=batch.groups[kind].slot_mapping.clone())
        for kind in GROUP_KINDS
        if kind in batch.groups
    }
    pieces = [
        batch.token_ids,
        batch.positions,
        batch.query_start_loc,
        batch.seq_lens,
        batch.has_past.long(),
        batch.state_slots,
        batch.logits_rows,
    ]
    for group in groups.values():
        pieces += [group.block_table.flatten(), group.first_block, group.slot_mapping]
    widths = [groups[k].block_table.shape[1] if k in groups else -1 for k in GROUP_KINDS]
    lengths = [len(batch.token_ids), batch.num_requests, batch.num_decodes, len(batch.logits_rows)]
    counts = torch.tensor([*lengths, int(batch.rows_in_order), *widths])
    fields = vars(batch) | {"groups": groups}
    return PackedBatch(**fields, words=torch.cat(pieces), counts=counts)


def unpack(words: Tensor, counts: Tensor) -> ForwardBatch:
    """The batch again, as views of `words`. `counts` is on the CPU, so nobody waits."""
    tokens, requests, num_decodes, rows, in_order, *widths = counts.tolist()
    present = {k: width for k, width in zip(GROUP_KINDS, widths, strict=True) if width >= 0}
    sizes = [tokens, tokens, requests + 1, requests, requests, requests, rows]
    for width in present.values():
        sizes += [requests * width, requests, tokens]
    token_ids, positions, starts, lens, past, slots, logits_rows, *rest = words.split(sizes)
    groups = {
        kind: GroupBatch(rest[3 * i].view(requests, width), rest[3 * i + 1], rest[3 * i + 2])
        for i, (kind, width) in enumerate(present.items())
    }
    # Only prefills look at has_past; for decodes alone its launch would be for nothing.
    has_past = past.bool() if requests > num_decodes else past
    return ForwardBatch(
        token_ids,
        positions,
        starts,
        lens,
        has_past,
        slots,
        groups,
        logits_rows,
        num_decodes,
        requests,
        bool(in_order),
    )


@remember
def _table(kernels: str) -> Kernels:
    """The kernels that the operations run: an operation's arguments cannot be a table."""
    return TORCH if kernels == "torch" else triton_table()


# --- attention -----------------------------------------------------------------------------------


@torch.library.custom_op("plamo_ref::write_kv", mutates_args=("keys", "values"))
def write_kv(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
    """k, v [T, G, P] into rows `slot_mapping` [T] of keys, values [blocks, block_size, G, P]."""
    keys.flatten(0, 1)[slot_mapping] = k
    values.flatten(0, 1)[slot_mapping] = v


@write_kv.register_fake
def _(k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slot_mapping: Tensor) -> None:
    return None


@torch.library.custom_op("plamo_ref::attend", mutates_args=())
def attend_op(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    words: Tensor,
    counts: Tensor,
    kind: str,
    window: int | None,
    kernels: str,
) -> Tensor:
    """As `plamo_ref.model.attend`: q [T, H, P] → [T, H, P]."""
    group: LayerKind = "full" if kind == "full" else "sliding_window"
    cache = AttentionCache(keys, values)
    return attend(q, group, window, unpack(words, counts), cache, _table(kernels)).contiguous()


@attend_op.register_fake
def _(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    words: Tensor,
    counts: Tensor,
    kind: str,
    window: int | None,
    kernels: str,
) -> Tensor:
    return q.new_empty(q.shape)


# --- Mamba ---------------------------------------------------------------------------------------


@torch.library.custom_op("plamo_ref::convolve", mutates_args=("cache",))
def convolve_op(
    u: Tensor, weight: Tensor, cache: Tensor, words: Tensor, counts: Tensor, kernels: str
) -> Tensor:
    """As `plamo_ref.model.convolve`: u [T, H, P] → [T, H·P]."""
    return convolve(u, weight, unpack(words, counts), cache, _table(kernels)).contiguous()


@convolve_op.register_fake
def _(
    u: Tensor, weight: Tensor, cache: Tensor, words: Tensor, counts: Tensor, kernels: str
) -> Tensor:
    return u.new_empty((u.shape[0], weight.shape[0]))


@torch.library.custom_op("plamo_ref::scan", mutates_args=("cache",))
def scan_op(
    u: Tensor,
    z: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    cache: Tensor,
    words: Tensor,
    counts: Tensor,
    kernels: str,
) -> Tensor:
    """As `plamo_ref.model.scan`: u, z [T, H, P] → [T, H, P]."""
    inputs, params = ScanInputs(u, z, dt, B, C), ScanParams(A, D, dt_bias)
    return scan(inputs, params, unpack(words, counts), cache, _table(kernels)).contiguous()


@scan_op.register_fake
def _(
    u: Tensor,
    z: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    A: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    cache: Tensor,
    words: Tensor,
    counts: Tensor,
    kernels: str,
) -> Tensor:
    return z.new_empty(z.shape)
