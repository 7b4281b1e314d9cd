"""The block tables of all running requests side by side, for whoever reads all of them in a step.

A table changes once in `block_size` steps of its request, and a step reads hundreds of them. So
each has a row in a matrix, written when it has changed, and a step gathers its rows at once.

Invariant: `find` returns rows that say what the tables say. A request that computes one token
before its holding's `calm_until` has the table of a step ago; every other row is written anew.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from plamo_ref.config import LayerKind
from plamo_ref.engine.memory.holding import BlockTable, Holding
from plamo_ref.engine.memory.pool import NULL_PLACE

Ints = NDArray[np.int64]


class GroupRows:
    """The tables of one attention group."""

    def __init__(self) -> None:
        self.blocks: Ints = np.zeros((0, 0), dtype=np.int64)  # [rows, width] behind a table: 0
        self.lengths: Ints = np.zeros(0, dtype=np.int64)  # [rows]
        self.first: Ints = np.zeros(0, dtype=np.int64)  # [rows]

    def clear(self, rows: int) -> None:
        """Empty tables in so many rows."""
        self.blocks = np.zeros((rows, self.blocks.shape[1]), dtype=np.int64)
        self.lengths, self.first = np.zeros((2, rows), dtype=np.int64)

    def write(self, row: int, table: BlockTable) -> None:
        length, (rows, width) = len(table.blocks), self.blocks.shape
        if length > width:
            wider = np.zeros((rows, 2 * length), dtype=np.int64)
            wider[:, :width] = self.blocks
            self.blocks = wider
        known = self.lengths.item(row)
        if table.first != self.first.item(row) or length < known:
            self.blocks[row, :known] = 0
            known, self.first[row] = 0, table.first
        self.blocks[row, known:length] = table.blocks[known:]  # its beginning, it only grows
        self.lengths[row] = length


class TableRows:
    """The tables of each attention group; a holding has the same row in all of them."""

    def __init__(self, kinds: Iterable[LayerKind]) -> None:
        self.groups = {kind: GroupRows() for kind in kinds}
        self.slots: Ints = np.zeros(0, dtype=np.int64)  # of their states
        self._calm_until: Ints = np.zeros(0, dtype=np.int64)
        self._owners: list[Holding] = []  # by row, also of those who hold nothing any more

    def find(self, holdings: Sequence[Holding], pasts: Ints, counts: Ints) -> Ints:
        """The row of each holding, up to date for a step of `counts` tokens behind `pasts`."""
        rows = np.array([holding.row for holding in holdings], dtype=np.int64)
        if len(self._owners) + (rows < 0).sum() > len(self._calm_until):
            self._start_over(2 * len(holdings))
            rows[:] = -1
        changed = (rows < 0) | (counts > 1) | (pasts >= self._calm_until[rows])
        for i in np.flatnonzero(changed).tolist():
            rows[i] = self._write(holdings[i])
        return rows

    def _write(self, holding: Holding) -> int:
        if holding.row < 0:
            holding.row = len(self._owners)
            self._owners.append(holding)
        for kind, group in self.groups.items():
            group.write(holding.row, holding.tables[kind])
        self.slots[holding.row] = holding.slot or NULL_PLACE
        self._calm_until[holding.row] = holding.calm_until
        return holding.row

    def _start_over(self, wanted: int) -> None:
        """Nobody has a row: cheaper than to know whose is free, and as rare as newcomers are."""
        for holding in self._owners:
            holding.row = -1
        self._owners.clear()
        rows = max(wanted, len(self._calm_until))
        self._calm_until, self.slots = np.zeros((2, rows), dtype=np.int64)
        for group in self.groups.values():
            group.clear(rows)
