"""From a schedule to the vector of one step: one pass over the requests, one move to the device.

Invariant: the batch says of each token where it stands and where its keys go, so the model needs
to know nothing of requests. The vector is built on the host with its padding, in pinned memory that
is handed out again only when the copy from it is done: a step may be built while the last one is
still being moved. Built in notebooks/07_continuous_batching.ipynb.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch, Room
from plamo_ref.config import LayerKind
from plamo_ref.engine.drafts import Drafts
from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.table_rows import GroupRows, Ints, TableRows
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Schedule
from plamo_ref.engine.settled import batch_order, newest, places_of, those_at

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
    numbers: Sequence[int]  # of the tokens chosen: how many outputs came before
    drafts: Drafts = field(default_factory=Drafts)  # rows of guesses follow those of `sampled`


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
    requests, drafts = batch_order(schedule.tokens, schedule.drafts), schedule.drafts
    told = _tell(requests, schedule)
    holdings = [r.settled or cache.holdings[r.request_id] for r in requests]
    rows = cache.rows.find(holdings, told.pasts, told.counts)
    batch = place(_room(told, cache.rows, rows))
    on_device = batch.vector.is_cuda
    host = torch.zeros(batch.room.size, dtype=torch.int64, pin_memory=True) if on_device else None
    put = batch.room.arrays((batch.vector.zero_() if host is None else host).numpy())
    layout = _Layout.of(told, batch.room)
    _write_requests(put, told, layout, batch.room)
    put["state_slots"][layout.requests] = cache.rows.slots[rows]
    for kind, group in cache.rows.groups.items():
        _write_group(put, kind, group, rows, cache.block_size, layout)

    late, ends = len(told.late), layout.ends - told.drafted  # of known tokens
    if late and unread is not None:
        put["late_rows"][:late] = ends[told.late]
        put["late_from"][:late] = places_of(those_at(requests, told.late), unread.requests)
    wanted, in_order = ends, told.is_steady
    if not in_order:
        scored = [layout.starts[i] - told.pasts[i] + at for i, those in told.scored for at in those]
        scored_rows = layout.row_of(np.array(scored, dtype=np.int64))
        wanted = np.concatenate((ends[told.complete], drafts.rows(requests, ends), scored_rows))
        in_order = np.array_equal(wanted, np.arange(len(wanted)))
    put["logits_rows"][: len(wanted)] = wanted

    if host is not None:
        batch.vector.copy_(host, non_blocking=True)
    if late and unread is not None:
        tokens = unread.tokens.index_select(0, batch.late_from[:late])
        batch.token_ids.index_copy_(0, batch.late_rows[:late], tokens)
    sampled = those_at(requests, told.complete)
    return BatchPlan(
        batch,
        tuple(requests),
        sampled=tuple(sampled),
        scored=tuple([(requests[i], places) for i, places in told.scored if places]),
        rows=slice(0, len(wanted)) if in_order else batch.logits_rows[: len(wanted)],
        numbers=drafts.numbers(sampled),
        drafts=drafts,
    )


@dataclass(frozen=True)
class _Told:
    """What the requests say of a step, in the order of the batch; whose is a number in it."""

    pasts: np.ndarray  # [R] tokens computed before
    counts: np.ndarray  # [R] tokens computed now
    token_ids: Sequence[int] | Ints  # [T]; 0 keeps the place of a token that is not read yet
    late: Ints  # whose last token is not read yet
    complete: Ints  # whose last known token is computed
    scored: list[tuple[int, range]]  # prompt positions whose successors get a logprob
    photographs: list[tuple[int, int, int]]  # of whom, behind how many new tokens, which slot
    drafted: Ints | int = 0  # [R] how many of the last tokens are guesses
    is_steady: bool = False  # each computes its newest token: they are decodes, and complete

    @cached_property
    def num_decodes(self) -> int:
        if self.is_steady:
            return len(self.counts)
        return int(((self.counts == 1) & (self.pasts > 0)).sum())


def _tell(requests: Sequence[Request], schedule: Schedule) -> _Told:
    """What they say. Those who are settled come first; they compute their newest token."""
    pasts = np.array([request.num_computed_tokens for request in requests])
    settled = len([request for request in requests if request.settled is not None])
    ids, late = newest(requests[:settled])
    if settled == len(requests):
        return _Told(pasts, np.ones_like(pasts), ids, late, np.arange(settled), [], [], 0, True)
    drafts = schedule.drafts
    counts = [1] * settled + [schedule.tokens[request] for request in requests[settled:]]
    token_ids, lates, complete, scored = list(ids), late.tolist(), list(range(settled)), []
    for i in range(settled, len(requests)):
        request, past, new = requests[i], requests[i].num_computed_tokens, counts[i]
        token_ids.extend(request.tokens(past, past + new))
        if past + new == request.num_tokens:
            complete.append(i)
            if request.num_unread_tokens:
                lates.append(i)
                token_ids.append(0)
        token_ids.extend(drafts.guesses(request))
        if request.params.prompt_logprobs is not None:
            scored.append((i, request.unscored(past, past + new)))
    photographs = [
        (requests.index(request), node.position - request.num_computed_tokens, holding.slot)
        for request, node, holding in schedule.photographs
        if holding.slot is not None
    ]
    photographs += drafts.photographs(requests, counts)
    late, whole = np.array(lates, dtype=np.int64), np.array(complete, dtype=np.int64)
    drafted = np.array([len(drafts.guesses(request)) for request in requests])
    computed = np.array(counts) + drafted
    return _Told(pasts, computed, token_ids, late, whole, scored, photographs, drafted)


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
    ends: Ints  # [R] row of each request's last token
    positions: np.ndarray  # [T] of the tokens in their texts
    owner: np.ndarray  # [T] whose tokens they are
    requests: Ints | slice  # [R] rows of the requests
    tokens: Ints | slice  # [T] rows of the tokens
    num_decodes: int
    moved: int  # by so much, whatever belongs to a prompt

    @classmethod
    def of(cls, told: _Told, room: Room) -> "_Layout":
        decodes, moved = told.num_decodes, room.decodes - told.num_decodes
        owner = np.arange(len(told.counts))
        if decodes == len(owner):  # a token each: a row is a request's and its token's
            rows = slice(0, decodes)
            starts = np.arange(decodes + 1)
            return cls(starts, starts[:-1], told.pasts, owner, rows, rows, decodes, moved)
        starts = np.concatenate(([0], np.cumsum(told.counts)))
        number, last = np.arange(starts[-1]), starts[1:] - 1
        return cls(
            starts=starts,
            ends=last + moved * (last >= decodes),
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
    block = group.blocks[rows[layout.owner], logical]
    mapping = block * block_size + layout.positions % block_size
    put[f"{kind}/slot_mapping"][layout.tokens] = mapping
