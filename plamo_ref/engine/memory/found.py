"""What prefix caching has found, and where it found no more: why.

Invariant: every request is counted once, when it begins; a reason is what was in the way of the
next block, not of the whole prompt.

    off               nothing is kept in this engine
    prompt logprobs   they are asked for, so these tokens have to be computed
    state evicted     one that was kept there has gone to make room
    no state there    texts begin alike for longer, but nobody has kept the state where they part
    salt              others have had it, with another salt
    first seen        nobody has kept anything of it
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from plamo_ref.engine.memory.radix import Node, descend
from plamo_ref.engine.request import Request

MOST_SALTS = 16  # of others, that are looked at for the same reason


@dataclass
class PrefixCounts:
    """What came of it since the engine began."""

    asked: int = 0  # tokens of all prompts
    found: int = 0  # … that need not be computed
    evicted: int = 0  # checkpoints
    misses: Counter[str] = field(default_factory=Counter)  # requests that could find more, by why

    def add(self, request: Request, position: int, why: str) -> None:
        self.asked += len(request.prompt_ids)
        self.found += position
        if why:
            self.misses[why] += 1


def why_not_later(
    request: Request,
    position: int,
    path: Node[Any] | None,
    least: int,
    roots: Mapping[str | None, Node[Any]],
) -> str:
    """Why a request begins at `position`, and not `least` tokens later; "" if it cannot.

    Args:
        path: where its prompt ends; None: nothing is kept.
        roots: of the texts, by salt.
    """
    if path is None:
        return "off"
    if position >= request.num_tokens - 1:
        return ""
    if position >= request.num_reusable_tokens:
        return "prompt logprobs"
    deeper = [node for node in path.path() if node.position >= position + least]
    if any(node.was_kept for node in deeper):
        return "state evicted"
    if any(node.num_kept for node in deeper):
        return "no state there"
    prompt = request.prompt_ids[:-1]
    others = (root for salt, root in roots.items() if salt != request.params.cache_salt)
    if any(descend(root, prompt)[1] >= position + least for root in islice(others, MOST_SALTS)):
        return "salt"
    return "first seen"
