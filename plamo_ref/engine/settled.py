"""Requests that go on by themselves: nothing is to be decided for them, and little to be said.

Once a request has a token, the newest is all that it computes in a step, and its memory changes
once in many steps. So it is with most requests of most steps, and that is where the host's time
goes: they are told apart by one look at each.

Invariant: who is settled (`Request.settled` is its memory) is running, and lacks its newest token
alone; who takes its memory away, or ends it, ends that too.
"""

from collections.abc import Iterable, Sequence

from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.request import Request


def settle(requests: Iterable[Request], cache: HybridCache) -> None:
    """A token of each has been chosen."""
    for request in requests:
        request.num_unread_tokens += 1
        if request.settled is None and request.status == "running":
            request.settled = cache.holdings[request.request_id]


def goes_on(request: Request) -> bool:
    """Whether a running request computes one token in the next step, whose memory it has already:
    then nothing is to be decided."""
    held = request.settled
    return (
        held is not None
        and request.num_computed_tokens < held.calm_until
        and not (request.awaits_guide or request.under_way)
    )


def newest(requests: Sequence[Request]) -> tuple[list[int], list[int]]:
    """The token that each settled request computes, 0 for one that only the device knows yet; and
    whose those are, by place."""
    unread = [request.num_unread_tokens for request in requests]
    pairs = zip(requests, unread, strict=True)
    ids = [0 if late else request.output_ids[-1] for request, late in pairs]
    return ids, [place for place, late in enumerate(unread) if late]


def places_of(requests: Sequence[Request], among: Sequence[Request]) -> Sequence[int]:
    """Where they are among others. Mostly they are the same ones, a step later."""
    if list(requests) == list(among):
        return range(len(requests))
    places = {request: place for place, request in enumerate(among)}
    return [places[request] for request in requests]
