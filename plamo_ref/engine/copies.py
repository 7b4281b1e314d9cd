"""Copies of places inside the cache: what two requests have in common, and one of them goes on
writing into, is copied before the step that writes.

The books only note a copy; it is made at the start of the next step. Places may have changed hands
meanwhile, even several times: whoever took one over comes later in the list or in the step, so the
copies of one room are made in the order in which they were noted.

With one arena a page may have changed its kind, so what touches a page as another kind is made
later, too. A newcomer may even have got its slot where the block is that it copies: then all that
it copies is read before any of it is written.

Invariant: after `copy_places` everything is as if newcomers had made their copies one by one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from plamo_ref.batch import LayerCache, MambaCache
from plamo_ref.config import LayerKind


class Copy(NamedTuple):
    """One place of all layers of a kind (a state slot of "mamba") into another."""

    kind: LayerKind
    source: int
    target: int


def copy_places(
    caches: Sequence[LayerCache],
    kinds: Sequence[LayerKind],
    copies: Sequence[Copy],
    pitch: Mapping[LayerKind, int] | None = None,
) -> None:
    """Launch the copies; nothing here waits for the device.

    Args:
        caches, kinds: of each layer; they need not have all kinds.
        pitch: numbers of a page, by kind, if pages change their kind.
    """
    for part, is_tangled in apart(copies, pitch) if pitch else [(list(copies), False)]:
        moves = _moves(caches, kinds, part)
        for tensor, targets, content in list(moves) if is_tangled else moves:
            tensor[targets] = content


def _moves(
    caches: Sequence[LayerCache], kinds: Sequence[LayerKind], copies: Sequence[Copy]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Tensors, into which places of them goes what; read as late as it can be."""
    for kind in dict.fromkeys(copy.kind for copy in copies):
        of_kind = [cache for cache, its in zip(caches, kinds, strict=True) if its == kind]
        for together in at_once([copy for copy in copies if copy.kind == kind and of_kind]):
            places = _on(_tensors(of_kind[0])[0].device, together)  # [2, n]
            for tensor in (each for cache in of_kind for each in _tensors(cache)):
                yield tensor, places[1], tensor[places[0]]


def apart(
    copies: Sequence[Copy], pitch: Mapping[LayerKind, int]
) -> Iterator[tuple[list[Copy], bool]]:
    """Cut a list where a page is touched as another kind than before; whether a part is that of one
    newcomer in which even that happens."""
    part, touched = list[Copy](), dict[int, LayerKind]()
    for branch in _branches(copies):
        pages = [(c.kind, place // pitch[c.kind]) for c in branch for place in c[1:]]
        as_what = {page: kind for kind, page in pages}
        is_tangled = any(as_what[page] != kind for kind, page in pages)
        if part and (is_tangled or any(touched.get(p, kind) != kind for kind, p in pages)):
            yield part, False
            part, touched = [], {}
        if is_tangled:
            yield branch, True
        else:
            part += branch
            touched |= as_what
    if part:
        yield part, False


def _branches(copies: Sequence[Copy]) -> Iterator[list[Copy]]:
    """What was noted at once: one of each kind at most, always in the same order of kinds."""
    branch = list[Copy]()
    for copy in copies:
        if branch and any(copy.kind == other.kind for other in branch):
            yield branch
            branch = []
        branch.append(copy)
    if branch:
        yield branch


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


def _tensors(cache: LayerCache) -> tuple[Tensor, Tensor]:
    return (cache.conv, cache.ssm) if isinstance(cache, MambaCache) else (cache.keys, cache.values)


def _on(device: torch.device, copies: Sequence[Copy]) -> Tensor:
    pairs = [[copy.source for copy in copies], [copy.target for copy in copies]]
    host = torch.tensor(pairs, dtype=torch.int64, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)
