"""Copies of places inside the cache: what two requests have in common, and one of them goes on
writing into, is copied before the step that writes.

The books only note a copy; it is made at the start of the next step. Places may have changed hands
meanwhile, even several times: whoever took one over comes later in the list or in the step, so the
copies of one room are made in the order in which they were noted.

Invariant: after `copy_places` everything is as if newcomers had made their copies one by one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from plamo_ref.batch import LayerCache
from plamo_ref.config import LayerKind
from plamo_ref.engine.memory.holding import Copy
from plamo_ref.engine.page_copies import apart

Places = tuple[int, int] | tuple[Tensor, Tensor]
Move = tuple[Tensor, int | Tensor, Tensor]  # into which places of a tensor goes what


def copy_places(
    caches: Sequence[LayerCache],
    kinds: Sequence[LayerKind],
    copies: Sequence[Copy],
    pitch: Mapping[LayerKind, int] | None = None,
) -> None:
    """Launch the copies; nothing here waits for the device.

    Args:
        caches, kinds: of each layer; they need not have all kinds.
        pitch: numbers of a page, by kind, if pages change their kind (see page_copies.py).
    """
    for part, is_tangled in apart(copies, pitch) if pitch else [(list(copies), False)]:
        moves: Iterable[Move] = _moves(caches, kinds, part)
        if is_tangled:
            moves = [(tensor, targets, content.clone()) for tensor, targets, content in moves]
        for tensor, targets, content in moves:
            tensor[targets] = content


def _moves(
    caches: Sequence[LayerCache], kinds: Sequence[LayerKind], copies: Sequence[Copy]
) -> Iterator[Move]:
    """Each tensor's moves; their content may be a view, read when it is written."""
    for kind in dict.fromkeys(copy.kind for copy in copies):
        of_kind = [cache for cache, its in zip(caches, kinds, strict=True) if its == kind]
        for together in at_once([copy for copy in copies if copy.kind == kind and of_kind]):
            sources, targets = _places(together, tensors_of(of_kind[0])[0].device)
            for tensor in (each for cache in of_kind for each in tensors_of(cache)):
                yield tensor, targets, tensor[sources]


def at_once(copies: Sequence[Copy]) -> Iterator[list[Copy]]:
    """Cut a list where a place is read or written that was written a moment ago.

    What is copied at once is read before any of it is written: reading a place that is written
    later needs no cut.
    """
    together, written = list[Copy](), set[int]()
    for copy in copies:
        if copy.source in written or copy.target in written:
            yield together
            together, written = [], set()
        together.append(copy)
        written.add(copy.target)
    if together:
        yield together


def tensors_of(cache: LayerCache) -> tuple[Tensor, ...]:
    """All memory of a layer, by place."""
    return tuple(part for part in vars(cache).values() if isinstance(part, Tensor))


def _places(copies: Sequence[Copy], device: torch.device) -> Places:
    """From where and to where. One copy needs half the launches and no upload."""
    if len(copies) == 1:
        return copies[0].source, copies[0].target
    pairs = [[copy.source for copy in copies], [copy.target for copy in copies]]
    host = torch.tensor(pairs, dtype=torch.int64, pin_memory=device.type == "cuda")
    sources, targets = host.to(device, non_blocking=True)
    return sources, targets
