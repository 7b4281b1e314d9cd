"""The memory of the layers as views of pages: see memory/pages.py for how they lie.

Each view is a dense tensor, as the kernels want it. It begins where its part of page 0 does, and
its places are numbered from there; numbers that no page hands out lie in the parts of others.

Invariant: a view is a storage of its own over the same bytes, so torch knows nothing of the others.
That is right for whoever compiles a layer: at any time a page is of one kind.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from plamo_ref.batch import AttentionCache, LayerCache
from plamo_ref.config import LayerKind, Plamo2Config
from plamo_ref.engine.config import EngineError
from plamo_ref.engine.memory.pages import Pages
from plamo_ref.kernels.ssm.narrow import mamba_cache
from plamo_ref.kernels.ssm.replay import ring_places


class Columns:
    """Columns of equal size, and the views that are dealt out of them."""

    def __init__(self, count: int, num_bytes: int, device: torch.device) -> None:
        self._columns = [
            torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(count)
        ]
        self._dealt: dict[LayerKind, int] = {}

    def view(
        self, kind: LayerKind, parts: int, apart: int, shape: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        """The next tensor of a kind, of which a column has so many, `apart` places behind each
        other. `shape`: of a place."""
        number = self._dealt.get(kind, 0)
        self._dealt[kind] = number + 1
        column = self._columns[number // parts].view(dtype)
        rows = column.view(-1, *shape)
        first = number % parts * apart
        part = rows[first : len(rows) - (parts - 1) * apart + first]
        if part.device.type == "meta":
            return part
        return torch.from_dlpack(part.view(torch.uint8)).view(dtype)  # it need not know the dtype


class Beside(Columns):
    """Beside the pages, for every slot, a place of this shape."""

    def __init__(
        self, pages: Pages, device: torch.device, place: Sequence[int], dtype: torch.dtype
    ) -> None:
        self._use, self._of = pages.shape.uses.get("mamba"), (place, dtype)
        slots = pages.num_pages * self._use.pitch if self._use else 0
        num_bytes = slots * torch.Size(place).numel() * dtype.itemsize
        super().__init__(pages.shape.columns if slots else 0, num_bytes, device)

    def next(self) -> Tensor:
        """Of the next layer."""
        assert self._use is not None
        return self.view("mamba", self._use.parts, 1, *self._of)


def paged_caches(
    config: Plamo2Config,
    pages: Pages,
    block_size: int,
    weight: Tensor,
    state_dtype: torch.dtype,
    stochastic: bool = False,
    kv_dtype: torch.dtype | None = None,
    replay: int = 1,
) -> Sequence[LayerCache]:
    """The memory of each layer, filled with zeros.

    Args:
        weight: of the model: its dtype and device are those of keys, values and convolutions.
        replay: tokens until a state is written.

    Raises:
        EngineError: the pages were made for a model of another shape.
    """
    shape, device, dtype = pages.shape, weight.device, weight.dtype
    heads, size = config.mamba_num_heads, config.hidden_size_per_head
    state = (heads, size, config.mamba_d_state)
    past = (config.mamba_inner_size, config.mamba_d_conv - 1)
    block = (block_size, config.num_key_value_heads, size)
    columns = Columns(shape.columns, pages.num_pages * shape.column_bytes, device)

    beside = partial(Beside, pages, device)
    convs = beside(past, dtype)
    scales = beside((heads,), torch.float32) if state_dtype.itemsize == 1 else None
    rings = [beside(*of) for of in ring_places(config, replay, dtype)]
    for kind, use in shape.uses.items():
        place, its = (state, state_dtype) if kind == "mamba" else (block, kv_dtype or dtype)
        if torch.Size(place).numel() * its.itemsize * use.pitch != shape.column_bytes:
            raise EngineError(f"pages of {shape.column_bytes:,} bytes do not fit {kind} places")
    caches: list[LayerCache] = []
    for kind in config.layer_kinds:
        use = shape.uses[kind]
        if kind == "mamba":
            parts = (convs.next(), columns.view(kind, use.parts, 1, state, state_dtype))
            scale = None if scales is None else scales.next()
            ring = [each.next() for each in rings]
            caches.append(mamba_cache(*parts, stochastic, scale, ring))
        else:
            both = [
                columns.view(kind, use.parts, use.count, block, kv_dtype or dtype) for _ in range(2)
            ]
            caches.append(AttentionCache(*both))
    return tuple(caches)
