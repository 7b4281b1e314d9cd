"""What happened in each step, for people and tests.

Invariant: a record is plain numbers and strings, taken after the step; nobody who reads it can
change the engine. Built in notebooks/07_continuous_batching.ipynb.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from plamo_ref.config import LayerKind
from plamo_ref.engine.memory.cache import HybridCache


@dataclass(frozen=True)
class ScheduledTokens:
    """The share of one request in a step."""

    request_id: str
    start: int  # position of the first token
    num_tokens: int
    kind: Literal["prefill", "decode", "recompute"]
    sampled: bool  # whether the step gave the request a new token


@dataclass(frozen=True)
class StepRecord:
    """One step. Blocks and slots are counted before finished requests give theirs back."""

    step: int
    scheduled: tuple[ScheduledTokens, ...]
    admitted: tuple[str, ...]
    preempted: tuple[str, ...]
    finished: tuple[str, ...]
    num_waiting: int
    num_running: int
    blocks_used: Mapping[LayerKind, int]
    slots_used: int
    started: float  # seconds on a monotonic clock
    schedule_seconds: float
    total_seconds: float
    # Of each one admitted: tokens that it found computed already, and why not more (see prefix.py).
    found: tuple[tuple[str, int, str], ...] = ()
    seen: Any = field(default=None, compare=False, repr=False)  # a Sighting, if a file is written

    @property
    def num_tokens(self) -> int:
        return sum(share.num_tokens for share in self.scheduled)


def memory_in_use(cache: HybridCache) -> tuple[dict[LayerKind, int], int]:
    """Blocks of each group and slots that requests hold; what is only kept counts as free."""
    blocks = {kind: pool.num_held for kind, pool in cache.blocks.items()}
    return blocks, 0 if cache.slots is None else cache.slots.num_held
