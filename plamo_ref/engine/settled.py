"""Requests that go on by themselves: nothing is to be decided for them, and little to be said.

Once a request has a token, the newest is all that it computes in a step, and its memory changes
once in many steps. So it is with most requests of most steps, and that is where the host's time
goes: they are told apart by one look at each, all in one pass that calls nothing.

Invariant: who is settled (`Request.settled` is its memory) is running, and lacks its newest token
alone; who takes its memory away, or ends it, ends that too.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from plamo_ref.engine.memory.cache import HybridCache
from plamo_ref.engine.memory.table_rows import Ints
from plamo_ref.engine.request import Request


def count(tokens: Mapping[Request, int]) -> None:
    """From now on these are computed."""
    for request, new in tokens.items():
        request.num_computed_tokens += new


def settle(requests: Sequence[Request], cache: HybridCache) -> list[Request]:
    """A token of each has been chosen. Returns those who get no more than that."""
    for request in requests:
        request.num_unread_tokens += 1
        if request.settled is None and request.status == "running":
            request.settled = cache.holdings[request.request_id]
    return [r for r in requests if r.max_output_tokens <= len(r.output_ids) + r.num_unread_tokens]


def who_goes_on(requests: Sequence[Request]) -> list[bool]:
    """Which running requests compute one token in the next step, whose memory they have already:
    nothing is to be decided for them, unless somebody takes that memory."""
    return [
        (held := r.settled) is not None
        and r.num_computed_tokens < held.calm_until
        and not (r.awaits_guide or r.under_way)
        for r in requests
    ]


def apart(requests: Sequence[Request]) -> tuple[Sequence[Request], list[Request]]:
    """Those whose newest token means that they go on, by far the most, and those to be asked."""
    asked = [
        r
        for r in requests
        if r.guide is not None
        or r.status == "finished"
        or r.output_ids[-1] in r.stop_ids
        or len(r.output_ids) + r.num_unread_tokens >= r.max_output_tokens
    ]
    if not asked:
        return requests, asked
    others = set(asked)
    return [r for r in requests if r not in others], asked


def batch_order(tokens: Mapping[Request, int], drafting: Collection[Request] = ()) -> list[Request]:
    """Those of a step as they stand in its batch: decodes, those who are settled first; then
    prompts. A decode is one token with a past: also the last token of a prompt that was cut just
    before it, unless it has a draft."""
    settled = [request for request in tokens if request.settled is not None]
    if len(settled) == len(tokens):
        return settled
    others = [request for request in tokens if request.settled is None]
    is_prompt = [tokens[r] > 1 or not r.num_computed_tokens or r in drafting for r in others]
    order = sorted(zip(is_prompt, range(len(others)), others, strict=True))
    return settled + [request for _, _, request in order]


def newest(requests: Sequence[Request]) -> tuple[Sequence[int] | Ints, Ints]:
    """The token that each settled request computes, 0 for one that only the device knows yet; and
    whose those are, by place."""
    unread = [r.num_unread_tokens for r in requests]
    if all(unread):  # overlapped, it is so with all of them
        return np.zeros(len(unread), dtype=np.int64), np.arange(len(unread))
    pairs = zip(requests, unread, strict=True)
    ids = [0 if late else request.output_ids[-1] for request, late in pairs]
    return ids, np.flatnonzero(unread)


def places_of(requests: Sequence[Request], among: Sequence[Request]) -> Ints:
    """Where they are among others. Mostly they are the same ones, a step later."""
    if list(requests) == list(among):
        return np.arange(len(requests))
    places = {request: place for place, request in enumerate(among)}
    return np.array([places[request] for request in requests])


def those_at(requests: list[Request], places: Ints) -> list[Request]:
    """Those at these places, mostly all."""
    if len(places) == len(requests):
        return requests
    return [requests[i] for i in places.tolist()]
