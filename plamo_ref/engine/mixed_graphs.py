"""CUDA graphs for steps with prompts: short prompts must not wait for Python.

A GPU is through with a step of a few hundred tokens before Python has launched all its kernels. So
such steps are recorded too, as decode steps are in graphs.py, with room for so many decodes, so
many prompts and so many prompt tokens:

    rows     0 … D       the decodes, then padding as in graphs.py
             D … D + T   the prompts' tokens, then tokens that belong to nobody
    requests 0 … D       likewise
             D … D + P   the prompts, then prompts without a token

Longer steps keep the GPU busy while Python launches, and padding would cost more than it saves.

Invariant: padding reads and writes the null block and the null slot only; what stands in rows that
belong to nobody reaches no other row. A batch that has no room is run without a graph.
Built in notebooks/13_cuda_graphs_and_overlap.ipynb.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch, GroupBatch
from plamo_ref.config import LayerKind
from plamo_ref.engine.graphs import record, table_widths
from plamo_ref.engine.planner import MemoryPlan
from plamo_ref.engine.pool import NULL_PLACE

DECODES = (0, 16, 64, 128, 256)
PROMPTS = (2, 8)
TOKENS = (32, 64, 128, 256, 384, 512, 640, 768, 1024)  # of all prompts together

Forward = Callable[[ForwardBatch], Tensor]  # a batch → hidden states [T, D]


@dataclass(frozen=True)
class Room:
    """What one recording has room for."""

    decodes: int
    prompts: int
    tokens: int  # of the prompts

    @classmethod
    def of(cls, batch: ForwardBatch, most_tokens: int) -> "Room | None":
        """The least that holds the batch, with at most so many prompt tokens."""
        decodes = batch.num_decodes
        tokens = batch.token_ids.shape[0] - decodes
        fitting = [
            next((n for n in ladder if n >= wanted), None)
            for ladder, wanted in (
                (DECODES, decodes),
                (PROMPTS, batch.num_requests - decodes),
                (TOKENS, tokens),
            )
        ]
        if tokens > most_tokens or None in fitting:
            return None
        return cls(*(n for n in fitting if n is not None))


class MixedBuffers:
    """The tensors of a batch with prompts, always at the same addresses."""

    def __init__(self, room: Room, widths: Mapping[LayerKind, int], device: torch.device) -> None:
        self.room, self._widths = room, dict(widths)
        rows, requests = room.decodes + room.tokens, room.decodes + room.prompts
        # Lines: token, position, the slot mapping of each group; of requests: length, slot, first
        # block of each group. Padding has length 0, so it sees no key, not even its own.
        none = [[0], [0], *[[NULL_PLACE]] * len(widths)]
        self._no_tokens = torch.tensor(none, device=device).repeat(1, rows)
        none = [[0], [NULL_PLACE], *[[0]] * len(widths)]
        self._no_requests = torch.tensor(none, device=device).repeat(1, requests)
        self._tokens, self._requests = self._no_tokens.clone(), self._no_requests.clone()
        starts = torch.arange(requests + 1, device=device).clamp(max=room.decodes)
        self.batch = ForwardBatch(
            token_ids=self._tokens[0],
            positions=self._tokens[1],
            query_start_loc=starts,
            seq_lens=self._requests[0],
            has_past=torch.ones(requests, dtype=torch.bool, device=device),
            state_slots=self._requests[1],
            groups={
                kind: GroupBatch(
                    torch.full((requests, width), NULL_PLACE, device=device),
                    first_block=self._requests[2 + i],
                    slot_mapping=self._tokens[2 + i],
                )
                for i, (kind, width) in enumerate(widths.items())
            },
            logits_rows=torch.arange(rows, device=device),
            num_decodes=room.decodes,
            num_requests=requests,
        )

    def fit(self, batch: ForwardBatch) -> bool:
        """Whether the block tables of `batch` are narrow enough."""
        return all(
            group.block_table.shape[1] <= self._widths[kind] for kind, group in batch.groups.items()
        )

    def load(self, batch: ForwardBatch) -> Tensor:
        """Copy a batch in; all other places become padding.

        Returns:
            [n] the rows whose logits are wanted, as the buffers have them.
        """
        moved = self.room.decodes - batch.num_decodes  # by so much, whatever belongs to a prompt
        decodes, prompts = batch.decodes, batch.prefills
        to_prompts = slice(self.room.decodes, prompts.stop + moved)
        tokens = slice(batch.num_decodes, batch.token_ids.shape[0])
        to_tokens = slice(self.room.decodes, tokens.stop + moved)

        groups = [batch.groups[kind] for kind in self._widths]
        of_tokens = [batch.token_ids, batch.positions, *(g.slot_mapping for g in groups)]
        of_requests = [batch.seq_lens, batch.state_slots, *(g.first_block for g in groups)]
        for target, padding, lines, here, there in (
            (self._tokens, self._no_tokens, of_tokens, tokens, to_tokens),
            (self._requests, self._no_requests, of_requests, prompts, to_prompts),
        ):
            target.copy_(padding)
            torch.stack([line[decodes] for line in lines], out=target[:, decodes])
            torch.stack([line[here] for line in lines], out=target[:, there])
        mine = self.batch
        mine.has_past[to_prompts] = batch.has_past[prompts]
        mine.has_past[to_prompts.stop :] = True
        mine.query_start_loc[to_prompts] = batch.query_start_loc[prompts] + moved
        mine.query_start_loc[to_prompts.stop :] = to_tokens.stop
        for kind, group in batch.groups.items():
            table = mine.groups[kind].block_table
            table.fill_(NULL_PLACE)
            table[decodes, : group.block_table.shape[1]] = group.block_table[decodes]
            table[to_prompts, : group.block_table.shape[1]] = group.block_table[prompts]
        wanted = batch.logits_rows
        return wanted + moved * (wanted >= batch.num_decodes)


class MixedGraphs:
    """A recorded graph for each room. It is recorded when it is needed for the second time: that
    takes as long as a few steps without one."""

    def __init__(
        self, forward: Forward, plan: MemoryPlan, device: torch.device, most_tokens: int
    ) -> None:
        self._forward, self._device, self._most_tokens = forward, device, most_tokens
        self._widths = table_widths(plan, most_tokens)
        self._seen = Counter[Room]()
        self._graphs: dict[Room, tuple[MixedBuffers, torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, batch: ForwardBatch) -> Tensor | None:
        """Hidden states [n, D] of the batch's `logits_rows`; None: run it plainly."""
        room = Room.of(batch, self._most_tokens) if batch.has_prefills else None
        if room is None:
            return None
        self._seen[room] += 1
        if room not in self._graphs:
            if self._seen[room] < 2:
                return None
            buffers = MixedBuffers(room, self._widths, self._device)
            self._graphs[room] = (buffers, *record(self._forward, buffers.batch, self._pool))
        buffers, graph, hidden = self._graphs[room]
        if not buffers.fit(batch):
            return None
        rows = buffers.load(batch)
        graph.replay()
        return hidden[rows]
