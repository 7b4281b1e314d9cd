"""Which replica a request goes to: one that has seen its beginning, if it is not much busier.

Invariant: a choice follows from what was told before and the loads alone: no clock, no chance. The
chosen replica is one of those asked about, its load at most `bound` above the least; among such it
has seen the longest beginning of the prompt, among equals it has the least load, then it has been
idle the longest. What is remembered is bounded.

What a replica has computed of a prompt only it has: to send the next request of a conversation
elsewhere is to compute the conversation again. But who always follows the prefix sends everybody
with the same system prompt to one replica; so a prefix is worth a bound and no more, and where its
replica is too busy another one learns it too.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

BLOCK = 32  # tokens; a shorter common beginning is computed faster than it is looked for
REMEMBERED = 1 << 16  # beginnings


class PrefixRouting:
    """Least load, and the longest known prefix within a bound.

    Args:
        bound: how much more load than the least, in the unit of the loads, a prefix is worth.
        by_prefix: False: prefixes are worth nothing (the engines keep none).
        block: beginnings are compared in steps of so many tokens.
        remembered: beginnings that are kept in mind; those not heard of the longest go first.
    """

    def __init__(
        self,
        bound: float,
        *,
        by_prefix: bool = True,
        block: int = BLOCK,
        remembered: int = REMEMBERED,
    ) -> None:
        self._bound, self._by_prefix = bound, by_prefix
        self._block, self._remembered = block, remembered
        self._seen: OrderedDict[int, set[int]] = OrderedDict()  # beginning → who has computed it
        self._turns: dict[int, int] = {}  # replica → the number of its last choice
        self._count = 0

    def choose(
        self, prompt_ids: Sequence[int], salt: str | None, loads: Mapping[int, float]
    ) -> int:
        """One of the replicas in `loads`, of which there is at least one."""
        limit = min(loads.values()) + self._bound
        near = {replica for replica, load in loads.items() if load <= limit}
        keys = list(self._beginnings(prompt_ids, salt)) if self._by_prefix else []
        knowing = (self._seen.get(key, set()) & near for key in reversed(keys))
        best = next(filter(None, knowing), set(loads))
        chosen = min(best, key=lambda one: (loads[one], self._turns.get(one, 0), one))
        self._count += 1
        self._turns[chosen] = self._count
        for key in reversed(keys):  # the long ones are forgotten before the short ones
            self._seen.setdefault(key, set()).add(chosen)
            self._seen.move_to_end(key)
        while len(self._seen) > self._remembered:
            self._seen.popitem(last=False)
        return chosen

    def forget(self, replica: int) -> None:
        """It has lost what it had computed."""
        for holders in self._seen.values():
            holders.discard(replica)

    def _beginnings(self, prompt_ids: Sequence[int], salt: str | None) -> Iterator[int]:
        """A number for each beginning of whole blocks, the shortest first."""
        key = hash(salt)
        for start in range(0, len(prompt_ids) - self._block + 1, self._block):
            key = hash((key, *prompt_ids[start : start + self._block]))
            yield key
