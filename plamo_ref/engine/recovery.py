"""After an error in the middle of a step: what can be derived is derived again.

A step moves requests between queues, takes blocks, launches work, appends tokens and advances
grammars; an interrupt can come between any two of these. Nothing is undone one by one. What a
request durably is, is little (see request.py), and each part of it changes at one instant: before
it or after it, never in the middle. All the rest follows:

    who waits, in which order    everybody who has not ended, by arrival
    who runs and holds memory    nobody: it is computed again, as after a preemption
    what is under way            nothing: those tokens were never read, and come out the same again
    how far a grammar has come   over the output so far
    log probabilities            those of tokens in the output; a later one is written over
    whether a request has ended  it says so, or its last token does

A token depends on its request alone, on its seed and number too, so what is computed again is what
would have been.

Invariant: needs nothing but the requests; may be interrupted anywhere itself, and done again.
"""

from plamo_ref.engine.endings import finish_reason
from plamo_ref.engine.request import Request
from plamo_ref.engine.scheduling.scheduler import Queues


def rebuild(requests: dict[str, Request], queues: Queues) -> list[Request]:
    """Let `requests` (by id) be in `queues` as if each had just been preempted.

    Returns those that have ended, also the ones of whom that shows only now; they are taken out.
    """
    queues.clear()
    ended = []
    for request in sorted(requests.values(), key=lambda r: r.arrival):
        _settle(request)
        if request.status == "finished":
            ended.append(request)
        else:
            queues.add(request)
    for request in ended:
        requests.pop(request.request_id, None)
    return ended


def _settle(request: Request) -> None:
    """Make everything about one request follow from what it durably is."""
    request.num_unread_tokens = 0
    if not request.output_ids:
        request.num_cached_tokens = None  # it begins anew
    if request.finish_reason is None:
        _look_at_output(request)
    if request.finish_reason is not None:
        request.finish(request.finish_reason, request.error)
    elif request.status == "running":
        request.reset()
    else:
        request.num_computed_tokens, request.settled = 0, None


def _look_at_output(request: Request) -> None:
    """Bring the grammar to the end of the output: what it says decides later whether that is the
    request's end. Without a grammar, see it now."""
    if request.guide is not None:
        outputs = request.output_ids
        ended = bool(outputs) and outputs[-1] in request.stop_ids  # no text: not the grammar's
        request.guide.restart(outputs[:-1] if ended else outputs)
        request.awaits_guide = True
    elif request.output_ids:
        reason = finish_reason(request)
        if reason is not None:
            request.finish(reason)
