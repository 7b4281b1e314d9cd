"""Lesson 06: give back, then take, in both rooms.

Invariant: after `allocate` a request has one slot, and exactly the blocks from the first one that a
coming query sees to the last one that is written.
Built in notebooks/06_hybrid_cache_manager.ipynb.
Below it: the slips that the self-check knows by name.
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


_REACH = "math.ceil((computed + new) / rooms.block_size)"

# Slips: the sentence that mends each, our words in `allocate`, and what is written instead of them.
SLIPS = {
    "a request takes one slot, once": ("name not in rooms.held", "True"),
    "`take` gives a list, and the slot is its only place": ("(slot,)", "slot"),
    "what leaves the table goes back": ("rooms.blocks.give_back(", "tuple("),
    "what no coming query sees goes back": ("first = first_needed", "first = 0 * first_needed"),
    "`first` moves along": ("held.first = first", "pass"),
    "the table begins at `held.first`, not at 0": (": first - held.first", ": first"),
    "what is still needed stays where it is": (": first - held.first", ":"),
    "the first new token sees W back": ("(computed,", "(computed + new,"),
    "a partly filled block is a block": ("math.ceil", "int"),
    "a full block needs none behind it": (_REACH, "(computed + new) // rooms.block_size + 1"),
    "the old tokens keep their blocks": ("(computed + new)", "new"),
    "what it has is not taken again": (" - len(held.blocks)", ""),
    "new blocks come behind the old ones": ("held.blocks +=", "held.blocks[:0] ="),
}
