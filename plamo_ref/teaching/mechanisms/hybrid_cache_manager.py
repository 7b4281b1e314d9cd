"""Lesson 06: give back, then take, in both rooms.

Invariant: after `allocate` a request has one slot, and exactly the blocks from the first one that a
coming query sees to the last one that is written.
Built in notebooks/06_hybrid_cache_manager.ipynb.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

from plamo_ref.engine.memory.pool import Pool


@dataclass
class Held:
    """What a request has: a slot, and the blocks from logical block `first` on."""

    slot: int
    first: int = 0
    blocks: list[int] = field(default_factory=list)


class Rooms(Protocol):
    """The lesson's two pools, and what each request has."""

    blocks: Pool
    slots: Pool
    block_size: int
    window: int
    held: dict[str, Held]


def first_needed(computed: int, window: int, block_size: int) -> int:
    """The first logical block that a coming query can see."""
    return max(0, computed - window) // block_size


def allocate(rooms: Rooms, name: str, computed: int, new: int) -> None:
    """Room for `new` tokens behind `computed` ones.

    Raises:
        PoolError: there is no slot, and nothing has changed; or there are too few blocks.
    """
    if name not in rooms.held:
        (slot,) = rooms.slots.take(1)
        rooms.held[name] = Held(slot)
    held = rooms.held[name]
    first = first_needed(computed, rooms.window, rooms.block_size)
    rooms.blocks.give_back(held.blocks[: first - held.first])
    del held.blocks[: first - held.first]
    held.first = first
    end = math.ceil((computed + new) / rooms.block_size)
    held.blocks += rooms.blocks.take(end - first - len(held.blocks))
