"""Steps recorded ahead, while nobody waits: before a server is ready, and in its idle moments.

A step is recorded when traffic first needs its room (graphs.py), which takes as long as several
steps do; whoever comes to a fresh server would wait for that, again and again. Here rooms are asked
for in the order in which traffic asks for them: decodes alone, then one or two prompts beside few
decodes and beside many, then more prompts.

Invariant: it only ever places rooms, as a step does; without it the same rooms are recorded later.
"""

from collections.abc import Callable, Iterator
from time import monotonic

import torch

from plamo_ref.batch import Room
from plamo_ref.engine.config import EngineConfig
from plamo_ref.engine.fast.graphs import DECODES, DRAFTS, LADDER, PROMPTS, TOKENS
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.runner import ModelRunner


class WarmUp:
    """The rooms that are still to be recorded."""

    def __init__(
        self,
        runner: ModelRunner,
        plan: MemoryPlan,
        engine: EngineConfig,
        has_memory: Callable[[], bool],
    ) -> None:
        """`has_memory`: whether another recording fits beside what a step needs."""
        self._runner, self._has_memory = runner, has_memory
        self._rooms = likely_rooms(plan, engine)

    def record_one(self) -> bool:
        """Record the next room. False: there is none left, or no memory for it."""
        room = next(self._rooms, None) if self._has_memory() else None
        if room is None:
            return False
        try:
            for _ in range(2):  # with prompts, a room is recorded when needed a second time
                self._runner.place(room)
        except torch.OutOfMemoryError:  # free memory may lie in pieces: what there is must do
            self._rooms = iter(())
            return False
        return True

    def record_for(self, seconds: float, clock: Callable[[], float] = monotonic) -> bool:
        """Record so long. False: there is nothing left to do."""
        end = clock() + seconds
        while clock() < end:
            if not self.record_one():
                return False
        return True


def likely_rooms(plan: MemoryPlan, engine: EngineConfig) -> Iterator[Room]:
    """Each on the ladders, none twice; of a full-attention table the least width."""
    seats, widths = plan.max_num_seqs, tuple((group.kind, 1) for group in plan.groups)
    for decodes in sorted({min(rung, seats) for rung in LADDER}):
        yield Room(decodes, 0, 0, widths)
    has_drafts = engine.speculative_config is not None
    photographed = has_drafts or (bool(engine.enable_prefix_caching) and engine.photographs)
    rungs = (*PROMPTS, *DRAFTS) if has_drafts else PROMPTS
    for prompts in (n for n in rungs if n <= seats):
        photographs = prompts if photographed else 0
        for decodes in sorted({min(rung, seats - prompts) for rung in DECODES}):
            for tokens in TOKENS:
                if prompts <= tokens <= engine.graph_tokens:
                    yield Room(decodes, prompts, tokens, widths, photographs)
