"""From a schedule to the vector of one step: one pass over the requests, one move to the device.

Invariant: the batch says of each token where it stands and where its keys go, so the model needs
to know nothing of requests. The vector is built on the host with its padding, in pinned memory that
is handed out again only when the copy from it is done: a step may be built while the last one is
still being moved. Built in notebooks/07_continuous_batching.ipynb.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch, Room
from plamo_ref.config import LayerKind
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.table_rows import GroupRows, Ints, TableRows
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Schedule
from plamo_ref.engine.settled import newest, places_of

Place = Callable[[Room], ForwardBatch]  # a batch on the device with at least so much room
Rows = slice | Tensor  # of the step's tokens


@dataclass(frozen=True)
class BatchPlan:
    """A batch and whose it is."""

    batch: ForwardBatch
    requests: tuple[Request, ...]  # in the order of the batch: decodes, then prefills
    sampled: tuple[Request, ...]  # those whose last known token is computed, in order
    scored: tuple[tuple[Request, range], ...]  # prompt positions whose successors get a logprob
    rows: Rows  # whose logits are wanted: those of `sampled` first
    numbers: Sequence[int]  # of the tokens that `sampled` get: how many outputs came before


@dataclass(frozen=True)
class Unread:
    """Tokens that a launched step has chosen and the host has not read."""

    tokens: Tensor  # [n] int64 on the device
    requests: Sequence[Request]  # [n] whose they are


def build_batch(
    schedule: Schedule, cache: HybridCache, place: Place, unread: Unread | None = None
) -> BatchPlan:
    """Lay the scheduled tokens side by side and look up where their memory is.

    Args:
        place: where the step is laid out; `ForwardBatch.empty` makes exactly the room needed.
        unread: has the last token of every request that has `num_unread_tokens`.
    """
    requests = _in_order(schedule)
    told = _tell(requests, schedule)
    holdings = [r.settled or cache.holdings[r.request_id] for r in requests]
    rows = cache.rows.find(holdings, told.pasts, told.counts)
    batch = place(_room(told, cache.rows, rows))
    host = torch.zeros(batch.room.size, dtype=torch.int64, pin_memory=batch.vector.is_cuda)
    put = batch.room.parts(host.numpy())
    layout = _Layout.of(told, batch.room)
    _write_requests(put, told, layout, batch.room)
    put["state_slots"][layout.requests] = cache.rows.slots[rows]
    for kind, group in cache.rows.groups.items():
        _write_group(put, kind, group, rows, cache.block_size, layout)

    late = len(told.late)
    ends = layout.row_of(layout.starts[1:] - 1)  # of each request's last token
    if late and unread is not None:
        put["late_rows"][:late] = ends[told.late]
        put["late_from"][:late] = places_of([requests[i] for i in told.late], unread.requests)
    scored = [layout.starts[i] - told.pasts[i] + at for i, places in told.scored for at in places]
    scored_rows = layout.row_of(np.array(scored, dtype=np.int64))
    wanted = np.concatenate((ends[told.complete], scored_rows))
    put["logits_rows"][: len(wanted)] = wanted

    batch.vector.copy_(host, non_blocking=True)
    if late and unread is not None:
        batch.token_ids[batch.late_rows[:late]] = unread.tokens[batch.late_from[:late]]
    in_order = np.array_equal(wanted, np.arange(len(wanted)))
    return BatchPlan(
        batch,
        tuple(requests),
        sampled=tuple(requests[i] for i in told.complete),
        scored=tuple((requests[i], places) for i, places in told.scored if places),
        rows=slice(0, len(wanted)) if in_order else batch.logits_rows[: len(wanted)],
        numbers=[requests[i].num_output_tokens for i in told.complete],
    )


@dataclass(frozen=True)
class _Told:
    """What the requests say of a step, in the order of the batch; whose is a number in it."""

    pasts: np.ndarray  # [R] tokens computed before
    counts: np.ndarray  # [R] tokens computed now
    token_ids: list[int]  # [T]; 0 keeps the place of a token that is not read yet
    late: list[int]  # whose last token is not read yet
    complete: list[int]  # whose last known token is computed
    scored: list[tuple[int, range]]  # prompt positions whose successors get a logprob
    photographs: list[tuple[int, int, int]]  # of whom, behind how many new tokens, which slot

    @cached_property
    def num_decodes(self) -> int:
        return int(((self.counts == 1) & (self.pasts > 0)).sum())


def _tell(requests: Sequence[Request], schedule: Schedule) -> _Told:
    """What they say. Those who are settled come first; they compute their newest token."""
    settled = sum(request.settled is not None for request in requests)
    pasts = [request.num_computed_tokens for request in requests]
    counts = [schedule.tokens[request] for request in requests]
    ids, late = newest(requests[:settled])
    told = _Told(np.array(pasts), np.array(counts), ids, late, list(range(settled)), [], [])
    for i in range(settled, len(requests)):
        request, past, new = requests[i], pasts[i], counts[i]
        told.token_ids.extend(request.tokens(past, past + new))
        if past + new == request.num_tokens:
            told.complete.append(i)
            if request.num_unread_tokens:
                told.late.append(i)
                told.token_ids.append(0)
        if request.params.prompt_logprobs is not None:
            told.scored.append((i, request.unscored(past, past + new)))
    for request, node, holding in schedule.photographs:
        if holding.slot is not None:
            count = node.position - request.num_computed_tokens
            told.photographs.append((requests.index(request), count, holding.slot))
    return told


def _room(told: _Told, tables: TableRows, rows: Ints) -> Room:
    """Exactly what the step needs."""
    decodes, requests = told.num_decodes, len(told.counts)
    widths = ((kind, int(group.lengths[rows].max())) for kind, group in tables.groups.items())
    tokens, photographs = int(told.counts.sum()) - decodes, len(told.photographs)
    return Room(decodes, requests - decodes, tokens, tuple(widths), photographs)


@dataclass(frozen=True)
class _Layout:
    """Where a step's requests and tokens stand in a room that may be larger."""

    starts: np.ndarray  # [R + 1] of each request's tokens, without padding
    positions: np.ndarray  # [T] of the tokens in their texts
    owner: np.ndarray  # [T] whose tokens they are
    requests: np.ndarray  # [R] rows of the requests
    tokens: np.ndarray  # [T] rows of the tokens
    num_decodes: int
    moved: int  # by so much, whatever belongs to a prompt

    @classmethod
    def of(cls, told: _Told, room: Room) -> "_Layout":
        decodes, moved = told.num_decodes, room.decodes - told.num_decodes
        owner = np.arange(len(told.counts))
        if decodes == len(owner):  # a token each: a row is a request's and its token's
            return cls(np.arange(decodes + 1), told.pasts, owner, owner, owner, decodes, moved)
        starts = np.concatenate(([0], np.cumsum(told.counts)))
        number = np.arange(starts[-1])
        return cls(
            starts=starts,
            positions=number - np.repeat(starts[:-1] - told.pasts, told.counts),
            owner=np.repeat(owner, told.counts),
            requests=owner + moved * (owner >= decodes),
            tokens=number + moved * (number >= decodes),
            num_decodes=decodes,
            moved=moved,
        )

    def row_of(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of tokens with these numbers."""
        return numbers + self.moved * (numbers >= self.num_decodes)


def _write_requests(
    put: Mapping[str, np.ndarray], told: _Told, layout: _Layout, room: Room
) -> None:
    """Everything but the caches' places. What is not written is padding."""
    put["token_ids"][layout.tokens] = told.token_ids
    put["positions"][layout.tokens] = layout.positions
    put["seq_lens"][layout.requests] = told.pasts + told.counts
    put["has_past"][layout.requests] = told.pasts > 0
    # A padded decode has a token (the kernels of decodes take one a request), a padded prompt none.
    decodes, prompts = room.decodes, len(told.counts) - layout.num_decodes
    ends = put["prefill_start_loc"]
    ends[1 : prompts + 1] = layout.starts[layout.num_decodes + 1 :] - layout.num_decodes
    ends[prompts + 1 :] = ends[prompts]
    put["query_start_loc"][:decodes] = np.arange(decodes)
    put["query_start_loc"][decodes:] = ends + decodes
    for row, (owner, count, slot) in enumerate(told.photographs):
        put["photographs"][row] = owner - layout.num_decodes, count, slot


def _write_group(
    put: Mapping[str, np.ndarray],
    kind: LayerKind,
    group: GroupRows,
    rows: Ints,
    block_size: int,
    layout: _Layout,
) -> None:
    """Block table, first block and slot mapping of one attention group."""
    table, first = put[f"{kind}/block_table"], group.first[rows]  # [R, M], [R]
    width = min(table.shape[1], group.blocks.shape[1])
    table[layout.requests, :width] = group.blocks[rows, :width]
    put[f"{kind}/first_block"][layout.requests] = first
    logical = layout.positions // block_size - first[layout.owner]
    block = table[layout.requests[layout.owner], logical]
    mapping = block * block_size + layout.positions % block_size
    put[f"{kind}/slot_mapping"][layout.tokens] = mapping


def _in_order(schedule: Schedule) -> list[Request]:
    """Decodes, those who are settled first; then prompts. A decode is one token with a past: also
    the last token of a prompt that was cut just before it."""
    tokens = schedule.tokens
    settled = [request for request in tokens if request.settled is not None]
    others = [request for request in tokens if request.settled is None]
    decodes = [r for r in others if tokens[r] == 1 and r.num_computed_tokens > 0]
    return settled + decodes + [r for r in others if tokens[r] > 1 or r.num_computed_tokens == 0]
