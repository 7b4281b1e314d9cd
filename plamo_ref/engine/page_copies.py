"""In which order copies are made where pages change their kind.

Since a copy was noted its places may have gone, and their page may be of another kind: so what
touches a page as another kind comes later. A newcomer may even have got its slot where the block is
that it copies; then all that it copies is read before any of it is written.

Invariant: in a part that is not tangled, each page is of one kind.
"""

from collections.abc import Iterator, Mapping, Sequence

from plamo_ref.config import LayerKind
from plamo_ref.engine.memory.holding import Copy


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
