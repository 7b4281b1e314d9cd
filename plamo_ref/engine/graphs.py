"""CUDA graphs for decoding: hundreds of launches become one.

A graph replays fixed launches on fixed addresses. So a decode batch is copied into buffers of a
fixed size (the next rung of a ladder), with block tables of a fixed width, and one graph is
recorded for each rung when it is first needed.

Invariant: rows beyond the batch read and write the null block and the null slot only, so padding
never touches a live one; a batch that does not fit the buffers is run without a graph.
Built in notebooks/13_cuda_graphs_and_overlap.ipynb.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch, GroupBatch
from plamo_ref.config import LayerKind
from plamo_ref.engine.planner import MemoryPlan
from plamo_ref.engine.pool import NULL_PLACE

LADDER = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, *range(80, 257, 16))
FULL_ATTENTION_BLOCKS = 512  # width of a full group's table; longer requests run without a graph

Step = Callable[[ForwardBatch], Tensor]  # a batch → logits


def table_widths(plan: MemoryPlan, new_tokens: int = 1) -> dict[LayerKind, int]:
    """Blocks that the table of a request can have in a step of so many tokens of it: the span of
    its window, or a fixed many."""
    size = plan.block_size
    return {
        group.kind: FULL_ATTENTION_BLOCKS
        if group.window is None
        else -(-(group.window + size + new_tokens - 1) // size) + 1
        for group in plan.groups
    }


def record(step: Step, batch: ForwardBatch, pool: Any) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of `step` over a batch that holds nothing but padding, and what it returns.

    `pool` is of `torch.cuda.graph_pool_handle()`: graphs that never run at once share their memory.
    """
    device = batch.token_ids.device
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        step(batch)  # compiles kernels, lets libraries allocate: neither can be recorded
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = step(batch)
    return graph, result


class DecodeBuffers:
    """The tensors of a decode batch of at most `rows` requests, always at the same addresses.

    All columns but the block tables are lines of one tensor: one launch fills them.
    """

    def __init__(self, rows: int, widths: Mapping[LayerKind, int], device: torch.device) -> None:
        self.rows, self.widths = rows, dict(widths)
        # What a padded row has: token 0 at position 0, which sees one key, all in null places.
        padding = [0, 0, 1, NULL_PLACE] + [0, NULL_PLACE] * len(widths)
        self._padding = torch.tensor(padding, device=device)[:, None]  # [columns, 1]
        self._columns = self._padding.repeat(1, rows)  # [columns, rows]
        token_ids, positions, seq_lens, state_slots, *places = self._columns.unbind()
        every = torch.arange(rows + 1, device=device)
        self.batch = ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            query_start_loc=every,  # one token a request
            seq_lens=seq_lens,
            has_past=torch.ones(rows, dtype=torch.bool, device=device),
            state_slots=state_slots,
            groups={
                kind: GroupBatch(
                    torch.full((rows, width), NULL_PLACE, device=device),
                    first_block=places[2 * i],
                    slot_mapping=places[2 * i + 1],
                )
                for i, (kind, width) in enumerate(widths.items())
            },
            logits_rows=every[:rows],
            num_decodes=rows,
            num_requests=rows,
            rows_in_order=True,
        )

    def fit(self, batch: ForwardBatch) -> bool:
        """Whether the block tables of `batch` are narrow enough."""
        return all(
            group.block_table.shape[1] <= self.widths[kind] for kind, group in batch.groups.items()
        )

    def load(self, batch: ForwardBatch) -> None:
        """Copy a decode batch in; the rows behind it become padding."""
        count = batch.num_requests
        columns = [batch.token_ids, batch.positions, batch.seq_lens, batch.state_slots]
        for kind, fixed in self.batch.groups.items():
            group = batch.groups[kind]
            columns += [group.first_block, group.slot_mapping]
            fixed.block_table.fill_(NULL_PLACE)
            fixed.block_table[:count, : group.block_table.shape[1]] = group.block_table
        if count < self.rows:
            self._columns[:, count:] = self._padding
        torch.stack(columns, out=self._columns[:, :count])


class DecodeGraphs:
    """One recorded graph for each rung of the ladder, recorded when it is first needed."""

    def __init__(self, step: Step, plan: MemoryPlan, device: torch.device) -> None:
        self._step, self._device = step, device
        self._widths = table_widths(plan)
        self._rungs = [n for n in LADDER if n < plan.max_num_seqs]
        self._rungs += [min(plan.max_num_seqs, LADDER[-1])]
        self._graphs: dict[int, tuple[DecodeBuffers, torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, batch: ForwardBatch) -> Tensor | None:
        """Logits [R, V] of a decode batch; None: there is no graph for it, run it plainly."""
        rung = next((n for n in self._rungs if n >= batch.num_requests), None)
        if batch.has_prefills or rung is None or not batch.rows_in_order:
            return None
        if rung not in self._graphs:
            buffers = DecodeBuffers(rung, self._widths, self._device)
            self._graphs[rung] = (buffers, *record(self._step, buffers.batch, self._pool))
        buffers, graph, logits = self._graphs[rung]
        if not buffers.fit(batch):
            return None
        buffers.load(batch)
        graph.replay()
        return logits[: batch.num_requests]
