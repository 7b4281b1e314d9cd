"""What a request has of the memory, and by which rule: the nouns of cache.py.

Invariant: plain numbers of places; who owns how much of a place is for the pools to say.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from plamo_ref.config import LayerKind, Plamo2Config

FAR = 1 << 62  # a position to which no text comes
ATTENTION_KINDS: tuple[LayerKind, ...] = ("sliding_window", "full")


@dataclass(frozen=True)
class AttentionGroup:
    """The memory rule of one group of layers."""

    kind: LayerKind
    window: int | None  # W: the last W computed tokens stay visible; None: all


def attention_groups(config: Plamo2Config) -> tuple[AttentionGroup, ...]:
    """The attention groups that the model has."""
    windows = {"sliding_window": config.attention_window_size, "full": None}
    return tuple(
        AttentionGroup(kind, windows[kind]) for kind in ATTENTION_KINDS if config.layers_of(kind)
    )


@dataclass
class BlockTable:
    """Physical blocks of consecutive logical blocks, the first of which is number `first`.

    It only loses blocks at its front and gets new ones at its end.
    """

    first: int = 0
    blocks: list[int] = field(default_factory=list)

    def calm_until(self, block_size: int, window: int | None) -> int:
        """Tokens before this position need no other block, and let none go."""
        leaves = FAR if window is None else (self.first + 1) * block_size + window
        return min(self.end * block_size, leaves)

    @property
    def end(self) -> int:
        """Logical number after the last block."""
        return self.first + len(self.blocks)


@dataclass(eq=False)
class Holding:
    """All that one request has, or one frozen moment of one."""

    tables: dict[LayerKind, BlockTable]
    slot: int | None
    calm_until: int = 0  # tokens before this position change no table
    row: int = -1  # see table_rows.py, which says it


class Copy(NamedTuple):
    """One place of all layers of a kind (a state slot of "mamba") into another: see copies.py."""

    kind: LayerKind
    source: int
    target: int
