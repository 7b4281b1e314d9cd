"""CUDA graphs: a step that was recorded once, hundreds of launches, is replayed by one.

A graph replays fixed launches on fixed addresses. So a step is laid out in the vector of a
recording, which has room for so many decodes, prompts and prompt tokens (the next rungs of the
ladders) and whose block tables have a fixed width. What does not fit the ladders is run plainly:
long steps keep the GPU busy while Python launches, and their padding would cost more than it saves.

Invariant: padding reads and writes the null block and the null slot only; rows that belong to
nobody reach no other row. Every recording is of the same code that runs without it.
Built in notebooks/13_cuda_graphs_and_overlap.ipynb.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch, LayerCache, Room
from plamo_ref.config import LayerKind
from plamo_ref.engine.batching import Rows
from plamo_ref.engine.config import MOST_DRAFTS
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.model import Plamo2Model

# Decodes alone.
LADDER = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, *range(80, 257, 16))
# With prompts: of decodes, of prompts, of the tokens of all prompts together.
DECODES = (0, 16, 64, 128, 256)
PROMPTS = (2, 8)
TOKENS = (32, 64, 128, 256, 384, 512, 640, 768, 1024)
PHOTOGRAPHS = (0, 2, 8)
DRAFTS = (16, MOST_DRAFTS)  # more of both, where requests with a draft are prompts of a few tokens
# Blocks in the table of a full-attention group. Tables are moved in every step, so not much wider
# than the step needs.
FULL_WIDTHS = (32, 128, 512, 2048, 8192, 32768)


class Ladders:
    """The room that a step is given, or none."""

    def __init__(self, plan: MemoryPlan, most_tokens: int, has_drafts: bool = False) -> None:
        """`most_tokens`: of prompts in a recorded step; 0: only decodes are recorded."""
        self._prompts = (*PROMPTS, *DRAFTS) if has_drafts else PROMPTS
        self._photographs = (*PHOTOGRAPHS, *DRAFTS) if has_drafts else PHOTOGRAPHS
        self._most_tokens = most_tokens
        self._rungs = [n for n in LADDER if n < plan.max_num_seqs]
        self._rungs += [min(plan.max_num_seqs, LADDER[-1])]
        self._windows = {group.kind: group.window for group in plan.groups}
        self._block_size = plan.block_size

    def room(self, needed: Room) -> Room | None:
        """The least room on the ladders that holds a step; None: it is run plainly."""
        widths = self._widths(needed)
        if not needed.prompts:
            rung = _next(self._rungs, needed.decodes)
            return None if rung is None or widths is None else Room(rung, 0, 0, widths)
        fitting = (
            _next(DECODES, needed.decodes),
            _next(self._prompts, needed.prompts),
            _next(TOKENS, needed.tokens) if needed.tokens <= self._most_tokens else None,
            _next(self._photographs, needed.photographs),
        )
        found = [rung for rung in fitting if rung is not None]
        if len(found) < len(fitting) or widths is None:
            return None
        decodes, prompts, tokens, photographs = found
        return Room(decodes, prompts, tokens, widths, photographs)

    def _widths(self, needed: Room) -> tuple[tuple[LayerKind, int], ...] | None:
        """A windowed table has the width that it can have at most, a full one a ladder's."""
        widths = []
        new_tokens = self._most_tokens if needed.prompts else 1
        for kind, width in needed.widths:
            window = self._windows[kind]
            spans = () if window is None else (span(window, self._block_size, new_tokens),)
            fitting = _next(spans or FULL_WIDTHS, width)
            if fitting is None:
                return None
            widths.append((kind, fitting))
        return tuple(widths)


def table_widths(plan: MemoryPlan, new_tokens: int = 1) -> tuple[tuple[LayerKind, int], ...]:
    """Blocks that a request's table can have in a step of so many tokens of it, at most: the span
    of its window, or all that there are, up to the end of the ladder."""
    return tuple(
        (group.kind, span(group.window, plan.block_size, new_tokens))
        if group.window is not None
        else (group.kind, _next(FULL_WIDTHS, plan.num_blocks[group.kind]) or FULL_WIDTHS[-1])
        for group in plan.groups
    )


def span(window: int, block_size: int, new_tokens: int) -> int:
    """Blocks of W keys before so many new ones, wherever they begin in a block."""
    return -(-(window + block_size + new_tokens - 1) // block_size) + 1


def _next(ladder: Sequence[int], wanted: int) -> int | None:
    return next((rung for rung in ladder if rung >= wanted), None)


@dataclass(frozen=True)
class Recording:
    """A step of padding that was recorded, and what it leaves behind."""

    batch: ForwardBatch
    graph: torch.cuda.CUDAGraph
    result: Tensor  # logits [T, V]; with prompts the hidden states [T, D]


class Graphs:
    """The recordings of one model, each made when traffic first needs it.

    With prompts, when it is needed for the second time: recording takes as long as a few steps.
    """

    def __init__(
        self,
        model: Plamo2Model,
        caches: Sequence[LayerCache],
        plan: MemoryPlan,
        most_tokens: int,
        has_drafts: bool = False,
    ) -> None:
        self._model, self._caches = model, caches
        self._ladders = Ladders(plan, most_tokens, has_drafts)
        self._needed = Counter[Room]()
        self._recordings: dict[Room, Recording] = {}
        # Memory belongs to a stream: with one for all recordings, what the first has asked for is
        # used by all others.
        self._side = torch.cuda.Stream(model.embedding.device)
        self._pool = torch.cuda.graph_pool_handle()

    def place(self, room: Room) -> ForwardBatch | None:
        """The batch of a recording with at least so much room; None: run the step plainly."""
        fixed = self._ladders.room(room)
        if fixed is None:
            return None
        self._needed[fixed] += 1
        if fixed not in self._recordings:
            if fixed.prompts and self._needed[fixed] < 2:
                return None
            self._recordings[fixed] = self._record(fixed)
        return self._recordings[fixed].batch

    def replay(self, batch: ForwardBatch, rows: Rows) -> Tensor | None:
        """Logits [n, V] of a batch that `place` gave; None: it is another one."""
        recording = self._recordings.get(batch.room)
        if recording is None or recording.batch is not batch:
            return None
        recording.graph.replay()
        result = recording.result[rows]
        return self._model.logits(result) if batch.has_prefills else result

    @torch.inference_mode()
    def _record(self, room: Room) -> Recording:
        batch = ForwardBatch.empty(room, self._model.embedding.device)

        def step() -> Tensor:
            hidden = self._model.forward(batch, self._caches)
            return hidden if room.prompts else self._model.logits(hidden)

        graph, result = record(step, self._side, self._pool)
        return Recording(batch, graph, result)


def record(
    step: Callable[[], Tensor], side: torch.cuda.Stream, pool: Any
) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A graph of `step`, recorded on a stream of its own, and what it returns.

    `pool` is of `torch.cuda.graph_pool_handle()`: graphs that never run at once share their memory.
    """
    current = torch.cuda.current_stream(side.device)
    side.wait_stream(current)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        step()  # compiles kernels, lets libraries allocate: neither can be recorded
        # `torch.cuda.graph` would collect garbage and give all free memory back before each of a
        # hundred recordings. Other threads, as the one that watches collectives, may ask the
        # device meanwhile.
        graph.capture_begin(pool, "thread_local")
        try:
            result = step()
        finally:
            graph.capture_end()
    current.wait_stream(side)
    return graph, result
