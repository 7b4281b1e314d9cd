"""From a schedule to the tensors of one step: one pass over the requests, one move to the device.

Invariant: the batch says of each token where it stands and where its keys go, so the model needs
to know nothing of requests. Built in notebooks/07_continuous_batching.ipynb.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from plamo_ref.batch import ForwardBatch, GroupBatch
from plamo_ref.config import LayerKind
from plamo_ref.engine.cache import BlockTable, HybridCache
from plamo_ref.engine.pool import NULL_PLACE
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduler import Schedule


@dataclass(frozen=True)
class BatchPlan:
    """A batch and whose it is."""

    batch: ForwardBatch
    requests: tuple[Request, ...]  # in the order of the batch: decodes, then prefills
    sampled: tuple[Request, ...]  # those whose last known token is computed, in order
    scored: tuple[tuple[Request, range], ...]  # prompt positions whose successors get a logprob


@dataclass(frozen=True)
class Unread:
    """Tokens that a launched step has chosen and the host has not read."""

    tokens: torch.Tensor  # [n] int64 on the device
    rows: Mapping[Request, int]  # where each request's is


def build_batch(
    schedule: Schedule, cache: HybridCache, device: torch.device, unread: Unread | None = None
) -> BatchPlan:
    """Lay the scheduled tokens side by side and look up where their memory is.

    Args:
        unread: has the last token of every request that has `num_unread_tokens`.
    """
    requests = sorted(schedule.tokens, key=lambda r: not _is_decode(r, schedule.tokens[r]))
    told = _tell(requests, schedule)
    ends = told.pasts + told.counts
    starts = np.concatenate(([0], np.cumsum(told.counts)))
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1] - told.pasts, told.counts)
    scored_rows = [
        starts[i] - told.pasts[i] + place for i, places in told.scored for place in places
    ]
    late_from = [unread.rows[requests[i]] for i in told.late] if unread else []
    holdings = [cache.holdings[r.request_id] for r in requests]

    columns: dict[str, np.ndarray] = {
        "late_rows": starts[1:][told.late] - 1,
        "late_from": np.array(late_from, dtype=int),
        "token_ids": np.array(told.token_ids),
        "positions": positions,
        "query_start_loc": starts,
        "seq_lens": ends,
        "has_past": told.pasts > 0,
        "state_slots": np.array([held.slot or NULL_PLACE for held in holdings]),
        "logits_rows": np.array([*(starts[1:][told.complete] - 1), *scored_rows], dtype=np.int64),
    }
    for kind in cache.groups:
        tables = [held.tables[kind] for held in holdings]
        columns |= _group_columns(kind, tables, cache.block_size, told.counts, positions)
    moved = _move(columns, device)
    if told.late and unread is not None:
        moved["token_ids"][moved["late_rows"]] = unread.tokens[moved["late_from"]]
    one_row_each = len(told.complete) == len(requests) == starts[-1] and not scored_rows
    return BatchPlan(
        _batch(moved, cache, num_decodes=told.num_decodes, rows_in_order=one_row_each),
        tuple(requests),
        sampled=tuple(requests[i] for i in told.complete),
        scored=tuple((requests[i], places) for i, places in told.scored if places),
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

    @property
    def num_decodes(self) -> int:
        return int(((self.counts == 1) & (self.pasts > 0)).sum())


def _tell(requests: Sequence[Request], schedule: Schedule) -> _Told:
    """One pass over the requests."""
    pasts, counts = np.empty((2, len(requests)), dtype=np.int64)
    told = _Told(pasts, counts, [], [], [], [])
    for i, request in enumerate(requests):
        past, new = request.num_computed_tokens, schedule.tokens[request]
        pasts[i], counts[i] = past, new
        told.token_ids.extend(request.tokens(past, past + new))
        if past + new == request.num_tokens:
            told.complete.append(i)
            if request.num_unread_tokens:
                told.late.append(i)
                told.token_ids.append(0)
        if request.params.prompt_logprobs is not None:
            told.scored.append((i, request.unscored(past, past + new)))
    return told


def _batch(
    moved: Mapping[str, torch.Tensor], cache: HybridCache, *, num_decodes: int, rows_in_order: bool
) -> ForwardBatch:
    """The columns on the device, by name."""
    groups: dict[LayerKind, GroupBatch] = {
        kind: GroupBatch(moved[f"{kind}/table"], moved[f"{kind}/first"], moved[f"{kind}/mapping"])
        for kind in cache.groups
    }
    return ForwardBatch(
        token_ids=moved["token_ids"],
        positions=moved["positions"],
        query_start_loc=moved["query_start_loc"],
        seq_lens=moved["seq_lens"],
        has_past=moved["has_past"].bool(),
        state_slots=moved["state_slots"],
        groups=groups,
        logits_rows=moved["logits_rows"],
        num_decodes=num_decodes,
        num_requests=len(moved["seq_lens"]),
        rows_in_order=rows_in_order,
    )


def _group_columns(
    kind: LayerKind,
    tables: Sequence[BlockTable],
    block_size: int,
    counts: np.ndarray,
    positions: np.ndarray,
) -> dict[str, np.ndarray]:
    """Block table, first block and slot mapping of one attention group."""
    first = np.array([table.first for table in tables])
    padded = _pad([table.blocks for table in tables])
    row = np.repeat(np.arange(len(tables)), counts)
    block = padded[row, positions // block_size - first[row]]
    mapping = block * block_size + positions % block_size
    return {f"{kind}/table": padded, f"{kind}/first": first, f"{kind}/mapping": mapping}


def _is_decode(request: Request, new_tokens: int) -> bool:
    """One token with a past: also the last token of a prompt that was cut just before it."""
    return new_tokens == 1 and request.num_computed_tokens > 0


def _pad(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Block tables [R, M]; what is missing on the right is the null block."""
    padded = np.full((len(rows), max(map(len, rows))), NULL_PLACE)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def _move(columns: dict[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """All columns as int64 tensors on the device, in a single transfer."""
    flat = np.concatenate([column.ravel() for column in columns.values()], dtype=np.int64)
    moved = torch.from_numpy(flat).to(device, non_blocking=True)
    parts = moved.split([column.size for column in columns.values()])
    return {
        name: part.view(column.shape)
        for (name, column), part in zip(columns.items(), parts, strict=True)
    }
