"""Penalties, biases and masks from tables on the device: what `adjust` gives, at a fixed cost.

`adjust` reads every token of every context in every step. Here a request has a seat, and with it a
row in each table that it needs: which tokens its prompt has and how often each is in its output,
its biases, its stop tokens. A row is filled once; a step adds the newest token, whose value need
not have reached the host.

Invariant: a row follows from the prompt, the output and the unread token of its request alone. A
seat knows how many output tokens its row counts, and a row that cannot be continued from there is
filled anew, so whatever became of a step, the result is `adjust`'s, bit by bit.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from plamo_ref.sampling.adjust import (
    RowContext,
    enforce,
    knobs_of,
    masks,
    moved,
    moved_masks,
    penalised,
    process_rows,
)


class Unread(Protocol):
    """Tokens that are chosen and not read yet."""

    @property
    def tokens(self) -> Tensor:
        """[n] int64 on the device."""
        ...

    @property
    def requests(self) -> Sequence[Any]:
        """[n] whose they are."""
        ...


@dataclass
class _Seat:
    """A request's place in the tables."""

    number: int
    filled: set[str] = field(default_factory=set)  # names of tables whose row is its own
    counted: int | None = None  # output tokens in its marks; None: not to be relied on


class _Asking(NamedTuple):
    """A row of logits that is to be changed."""

    row: int
    key: Hashable
    context: RowContext


class _Table:
    """Rows [S, width] on the device, one for each seat; they become more when need be."""

    def __init__(self, name: str, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.name = name
        self.rows = torch.zeros(0, width, dtype=dtype, device=device)

    def row(self, seat: int) -> Tensor:
        """The row [width] of a seat, all zero."""
        have = len(self.rows)
        if seat >= have:
            more = self.rows.new_zeros(max(4, 2 * have, seat + 1), self.rows.shape[1])
            more[:have] = self.rows
            self.rows = more
        return self.rows[seat].zero_()


class AdjustTables:
    """The tables of one engine: at most V × (4 + 4 + 1) bytes for each unfinished request that
    asks for what they hold, and nothing while nobody does."""

    def __init__(self) -> None:
        self._seats: dict[Hashable, _Seat] = {}
        self._tables: dict[str, _Table] = {}

    @property
    def num_seats(self) -> int:
        return len(self._seats)

    @property
    def num_bytes(self) -> int:
        return sum(table.rows.nbytes for table in self._tables.values())

    def release(self, key: Hashable) -> None:
        """A request has ended; with the last one goes the memory."""
        self._seats.pop(key, None)
        if not self._seats:
            self._tables.clear()

    def clear(self) -> None:
        """Nobody has a seat any more: all rows are filled anew."""
        self._seats.clear()
        self._tables.clear()

    @torch.inference_mode()
    def adjust(
        self,
        logits: Tensor,
        keys: Sequence[Hashable],
        contexts: Sequence[RowContext],
        unread: Unread | None = None,
    ) -> Tensor:
        """As `plamo_ref.sampling.adjust.adjust`. Does not wait for the device.

        Args:
            keys: one for each row, the same as long as the row's request lives; then `release`.
            unread: has, by key, the last token of each row whose `num_outputs` counts one more
                than `output_ids` has.
        """
        if not any(context.params.changes_logits for context in contexts):
            return logits
        # First of all, before anything waits for the device, which still computes the logits.
        guided, allowed = masks(contexts)
        result = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
        process_rows(result, contexts)
        rows = [_Asking(i, *row) for i, row in enumerate(zip(keys, contexts, strict=True))]
        penalising = [row for row in rows if row.context.params.penalises]
        biased = [row for row in rows if row.context.params.logit_bias]
        early = [row for row in rows if row.context.early and row.context.stop_ids]
        if penalising:
            where, knobs = self._rows(penalising, self._table("knobs", result, width=3), _set_knobs)
            marks = self._marks(penalising, self._table("marks", result, torch.int32), unread)
            apply = penalise_occurring if result.device.type == "cpu" else penalise_all
            apply(result, where, marks, knobs)
        if biased:
            where, bias = self._rows(biased, self._table("bias", result), _set_bias)
            result.index_add_(0, where, bias)
        if early:
            where, stops = self._rows(early, self._table("stops", result, torch.bool), _set_stops)
            result[where] = result[where].masked_fill_(stops, -torch.inf)
        if guided:
            enforce(result, moved(guided, result.device), moved_masks(allowed, result.device))
        return result

    # --- inside --------------------------------------------------------------------------------

    def _table(
        self, name: str, like: Tensor, dtype: torch.dtype | None = None, width: int | None = None
    ) -> _Table:
        if name not in self._tables:
            shape = like.shape[1] if width is None else width
            self._tables[name] = _Table(name, shape, dtype or like.dtype, like.device)
        return self._tables[name]

    def _seat(self, key: Hashable) -> _Seat:
        if key not in self._seats:
            taken = {seat.number for seat in self._seats.values()}
            free = next(number for number in range(len(taken) + 1) if number not in taken)
            self._seats[key] = _Seat(free)
        return self._seats[key]

    def _rows(
        self, asking: Sequence[_Asking], table: _Table, fill: Callable[[Tensor, RowContext], None]
    ) -> tuple[Tensor, Tensor]:
        """Numbers of the asking rows [n], and their rows of the table [n, width]."""
        numbers = []
        for each in asking:
            seat = self._seat(each.key)
            if table.name not in seat.filled:
                fill(table.row(seat.number), each.context)
                seat.filled.add(table.name)
            numbers.append(seat.number)
        where, seats = moved([[each.row for each in asking], numbers], table.rows.device)
        return where, table.rows[seats]

    def _marks(self, asking: Sequence[_Asking], table: _Table, unread: Unread | None) -> Tensor:
        """What has occurred in the asking rows [n, V], as `penalise_all` wants it."""
        width, device = table.rows.shape[1], table.rows.device
        seats = [self._seat(each.key) for each in asking]
        unread_of = {} if unread is None else {r: i for i, r in enumerate(unread.requests)}
        known: list[int] = []  # places in the table, one row after the other
        late: list[tuple[int, int]] = []  # seat, and place among the unread
        for seat, (_, key, context) in zip(seats, asking, strict=True):
            outputs, start = context.output_ids, seat.counted
            seat.counted = None  # until all is done
            if start is None or start > context.total:
                row, start = table.row(seat.number), 0
                row.index_fill_(0, _ids(context.prompt_ids, device), 1)
            known += [seat.number * width + token for token in outputs[start:]]
            if context.total > max(start, len(outputs)):
                assert unread is not None, f"{key}: its last token is neither known nor unread"
                late.append((seat.number, unread_of[key]))
        places = moved(known, device)
        if late and unread is not None:
            owners, rows = moved(late, device).unbind(1)
            places = torch.cat((places, owners * width + unread.tokens[rows]))
        flat = table.rows.view(-1)
        flat.index_add_(0, places, torch.full_like(places, 2, dtype=flat.dtype))
        for seat, each in zip(seats, asking, strict=True):
            seat.counted = each.context.total
        return table.rows[moved([seat.number for seat in seats], device)]


def penalise_all(logits: Tensor, rows: Tensor, marks: Tensor, knobs: Tensor) -> None:
    """Penalise rows [n] of logits [B, V] in place: a handful of launches, and no waiting.

    Args:
        marks: [n, V], 1 if the prompt has the token, and 2 for each time that the output has it.
        knobs: [n, 3], see `penalised`.
    """
    logits[rows] = penalised(logits[rows], knobs[:, None], marks >> 1, marks != 0)


def penalise_occurring(logits: Tensor, rows: Tensor, marks: Tensor, knobs: Tensor) -> None:
    """The same where tokens have occurred at all, which are few. Only a CPU finds them at once."""
    width, flat = marks.shape[1], logits.view(-1)
    found = marks.view(-1).nonzero()[:, 0]  # [k], as the next four
    row = found // width
    place = found + ((rows - torch.arange(len(rows))) * width).index_select(0, row)
    logit, mark = flat.index_select(0, place), marks.view(-1).index_select(0, found)
    changed = penalised(logit, knobs.index_select(0, row), mark >> 1, mark != 0)
    flat.index_copy_(0, place, changed)


def _set_knobs(row: Tensor, context: RowContext) -> None:
    row.copy_(moved(knobs_of(context.params), row.device, row.dtype))


def _set_bias(row: Tensor, context: RowContext) -> None:
    bias = context.params.logit_bias
    values = moved(np.fromiter(bias.values(), np.float64, len(bias)), row.device, row.dtype)
    row[_ids(bias, row.device)] = values


def _set_stops(row: Tensor, context: RowContext) -> None:
    row[_ids(context.stop_ids, row.device)] = True


def _ids(tokens: Iterable[int], device: torch.device) -> Tensor:
    return moved(np.fromiter(tokens, np.int64), device)
