"""What lesson 17 lends reads what the package's server sends.

Invariant tested: no cut of the bytes changes an event, and none waits for the end of the stream.
"""

import json

import pytest

from plamo_ref.server.openai.wire import DONE, event
from plamo_ref.teaching.mechanisms.server_sent_events import events

SAID = [{"text": "吾輩\n\n"}, {"text": "data: 猫"}]
WIRE = b"".join(map(event, SAID)) + DONE


@pytest.mark.parametrize("size", [1, 2, 7, len(WIRE)])
def test_events_are_read_however_the_bytes_are_cut(size):
    *told, last = events(WIRE[i : i + size] for i in range(0, len(WIRE), size))
    assert ([json.loads(text) for text in told], last) == (SAID, "[DONE]")


def test_an_event_is_told_before_the_next_piece_is_taken():
    pieces = iter([event(SAID[0]), DONE])
    assert json.loads(next(events(pieces))) == SAID[0]
    assert next(pieces) == DONE
