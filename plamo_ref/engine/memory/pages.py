"""How large a page is, that is one state slot (or a few) at one time and KV blocks at another.

Kernels find a slot or a block by its number, in one dense tensor of a layer. Both tensors can lie
over the same bytes, if a page is a whole number of either:

    bytes of a column    |            page 1             |            page 2             | …
    as states            |  slot 1 of layer 0            |  slot 2 of layer 0            |
    as keys and values   | k1 | k2 | k3 | k4 | v1 | v2 … | k9 | k10 …

A column holds the states of some Mamba layers, and the keys or the values of some attention layers:
so many columns that both are dealt out evenly. In a page each of these has a part of its own, and a
tensor begins where its part in the first page does, so the numbers leave gaps and the kernels never
know. The convolution's memory, the scales of narrow states and rings are small: they lie beside the
pages, and have a place for every slot.

Invariant: nothing of a page is in two tensors of one kind; at most MOST_WASTE of it is in none.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from plamo_ref.config import LayerKind, Plamo2Config
from plamo_ref.engine.memory.holding import attention_groups

MOST_SLOTS, MOST_WASTE = 16, 1 / 16  # in a page


@dataclass(frozen=True)
class PageUse:
    """What a page is as one kind of places: so many, whose numbers lie `step` apart; the first ones
    of two pages lie `pitch` apart. A column has `parts` tensors of this kind."""

    count: int
    step: int
    pitch: int
    parts: int

    def places(self, page: int) -> list[int]:
        """Their numbers."""
        return [page * self.pitch + each * self.step for each in range(self.count)]


@dataclass(frozen=True)
class PageShape:
    """One page, in every column and beside them."""

    columns: int
    column_bytes: int  # of one page
    beside_bytes: int  # of one page: the convolution's, scales, rings
    uses: Mapping[LayerKind, PageUse]

    @property
    def page_bytes(self) -> int:
        return self.columns * self.column_bytes + self.beside_bytes


@dataclass(frozen=True)
class Pages:
    """So many pages, number 0 of which is the null page, and how many each kind always keeps: so
    that who is alone can go on, however the others are scattered."""

    shape: PageShape
    num_pages: int
    least: Mapping[LayerKind, int]
    assured: Mapping[LayerKind, int]  # places that one who is alone can have

    @property
    def pitch(self) -> dict[LayerKind, int]:
        """Numbers of a page, of each kind."""
        return {kind: use.pitch for kind, use in self.shape.uses.items()}

    def most(self, kind: LayerKind) -> int:
        """Places of a kind, while all that others need not keep is of this kind."""
        kept = sum(self.least.values()) - self.least[kind]
        return (self.num_pages - 1 - kept) * self.shape.uses[kind].count


def page_shape(
    config: Plamo2Config,
    block_size: int,
    itemsize: int,
    state_itemsize: int,
    kv_itemsize: int | None = None,
    replay: int = 1,
) -> PageShape | str:
    """The smallest page that serves all kinds of this model; a string says why there is none."""
    layers = {g.kind: len(config.layers_of(g.kind)) for g in attention_groups(config)}
    num_mamba = len(config.layers_of("mamba"))
    if len(layers) + bool(num_mamba) < 2:
        return "the model has one kind of memory only"
    # Keys, or values, of one block of one layer; the state of one layer.
    kind, count = next(iter(layers.items()))
    block = config.kv_bytes_per_token(kind, kv_itemsize or itemsize) * block_size // (2 * count)
    ssm = config.mamba_inner_size * config.mamba_d_state * state_itemsize
    beside = config.state_bytes(itemsize, state_itemsize) - num_mamba * ssm  # of a slot
    beside += config.ring_bytes(replay, itemsize)
    columns = math.gcd(num_mamba, *(2 * count for count in layers.values()))
    parts = {kind: 2 * count // columns for kind, count in layers.items()}
    states = num_mamba // columns
    unit = states * ssm if num_mamba else block * math.lcm(*parts.values())
    for times in range(1, MOST_SLOTS + 1):
        size = times * unit
        used = [size // block // n * n * block for n in parts.values()]
        if not size % block and min(used) >= (1 - MOST_WASTE) * size:
            pitch = size // block
            uses: dict[LayerKind, PageUse] = {
                kind: PageUse(pitch // n, 1, pitch, n) for kind, n in parts.items()
            }
            if num_mamba:
                uses["mamba"] = PageUse(times, states, times * states, states)
            return PageShape(columns, size, times * beside, uses)
    return (
        f"up to {MOST_SLOTS} states of {ssm:,} bytes are no whole number of blocks "
        f"({block:,} bytes of keys in a layer, block_size={block_size})"
    )
