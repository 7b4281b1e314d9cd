"""Faults behind the engine: right tokens, wrong text. And the law of text that finds them.

Invariant: what is expected comes from all tokens at once and a search in the finished text; nothing
of `TextStream` is used for it.
"""

from collections.abc import Sequence
from typing import Any

from plamo_ref.errors import PlamoRefError
from plamo_ref.proof.planting import Fault, patch
from plamo_ref.sampling import SamplingParams
from plamo_ref.text.stream import TextStream
from plamo_ref.text.tokenizer import Plamo2Tokenizer


class TextError(PlamoRefError, AssertionError):
    """What a client was sent, piece by piece, is not the text."""


def check_text(token_ids: Sequence[int], params: SamplingParams, tokenizer: Plamo2Tokenizer) -> str:
    """Send `token_ids` out one by one, and compare with the text of all of them; returns it.

    Raises:
        TextError: says what was sent and what should have been.
    """
    stream, sent = TextStream(tokenizer, params), ""
    for token_id in token_ids:
        sent += stream.push(token_id)
        if stream.stopped_by is not None:
            break
    sent += stream.finish()
    text = tokenizer.decode(list(token_ids), skip_special_tokens=params.skip_special_tokens)
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in params.stop if stop in text]
    expected = text[: sum(min(ends))] if ends else text
    if sent != expected:
        raise TextError(f"sent {sent!r}, the text is {expected!r}")
    return sent


def _send_too_early(release: Any, stream: TextStream, new: str, *, last: bool) -> str:
    sent = len(stream._held)
    return str(release(stream, new, last=last) + stream._held)[sent:]


def _look_at_the_piece_alone(release: Any, stream: TextStream, new: str, *, last: bool) -> str:
    held, stream._held = stream._held, ""
    return held + str(release(stream, new, last=last))


TEXT_FAULTS = (
    Fault(
        "stop string cut in half",
        "Its first half is sent before the second arrives and ends the text.",
        "text",
        patch(TextStream, "_release", _send_too_early),
    ),
    Fault(
        "stop string over two tokens missed",
        "Only the newest piece of text is searched for stop strings.",
        "text",
        patch(TextStream, "_release", _look_at_the_piece_alone),
    ),
)
