"""A document in pieces that a model can translate at once, cut where a reader would pause.

A paragraph is a piece if it is short enough. A longer one is cut behind sentences, into as few
pieces as its length allows; a sentence that is longer than a piece, behind a word or a clause, or,
if there is nothing of that kind, anywhere.

Invariant: what stands before the first piece, and each piece with what comes after it, are together
the document, to the last character.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

# Where a text may be cut, the best way first. What ends a sentence stays with it.
PARAGRAPH = re.compile(r"(?<=\S)(?=\s*\n\s*\n)|(?<=\S)(?=\s*\Z)")
_CLOSING = r"""["'”’»)\]}）］｝〉》」』】]*"""
SENTENCE = re.compile(rf"[。．！？!?…]+{_CLOSING}|[.:;]+{_CLOSING}(?=\s)|(?<=\S)(?=[ \t]*\n)")
CLAUSE = re.compile(r"[、，]|(?<=\S)(?=\s)")
ANYWHERE = re.compile(r"(?<=.)(?=.)", re.DOTALL)
WAYS = (SENTENCE, CLAUSE, ANYWHERE)


class Piece(NamedTuple):
    """What is translated at once, and the white space behind it, which is kept."""

    text: str
    after: str = ""


def paragraphs(document: str) -> tuple[str, list[Piece]]:
    """White space at the beginning, and the paragraphs."""
    body = document.lstrip()
    return document[: len(document) - len(body)], _pieces(_cut(body, PARAGRAPH))


def shortened(piece: Piece, limit: int, length: Callable[[str], int]) -> list[Piece]:
    """A piece in parts of at most `limit`; a single character may be longer.

    Args:
        length: of a text, in the unit of `limit`; that of a text is at most that of its parts.
    """
    parts = [piece.text]
    for way in WAYS:
        parts = [
            part
            for long in parts
            for part in ([long] if length(long) <= limit else _joined(long, way, limit, length))
        ]
    return _with_last(_pieces(parts), piece.after)


def halves(piece: Piece) -> list[Piece]:
    """A piece in two, near its middle, behind a sentence; [piece] if it is a single one."""
    sentences = _cut(piece.text, SENTENCE)
    ends = list(itertools.accumulate(map(len, sentences)))[:-1]
    if not ends:
        return [piece]
    middle = min(ends, key=lambda end: abs(2 * end - len(piece.text)))
    both = _pieces([piece.text[:middle], piece.text[middle:]])
    return _with_last(both, piece.after)


def joint(left: str, after: str, right: str) -> str:
    """What goes between two translated pieces whose originals had `after` between them: line breaks
    stay, and words are kept apart in a script that has spaces."""
    if "\n" in after or not (left and right):
        return after
    if unicodedata.east_asian_width(left[-1]) in "WF":
        return ""
    return after if after.isascii() and after else " "


def _cut(text: str, way: re.Pattern[str]) -> list[str]:
    ends = sorted({match.end() for match in way.finditer(text)} - {0, len(text)})
    return [text[i:j] for i, j in itertools.pairwise([0, *ends, len(text)])]


def _joined(text: str, way: re.Pattern[str], limit: int, length: Callable[[str], int]) -> list[str]:
    """Neighbours together as long as they are short enough."""
    parts = [""]
    for part in _cut(text, way):
        if parts[-1] and length((parts[-1] + part).strip()) > limit:
            parts.append("")
        parts[-1] += part
    return parts


def _pieces(parts: Sequence[str]) -> list[Piece]:
    """White space at the beginning of a part belongs to the piece before it."""
    pieces = list[Piece]()
    for part in parts:
        rest = part.lstrip()
        space = part[: len(part) - len(rest)]
        if pieces:
            pieces[-1] = pieces[-1]._replace(after=pieces[-1].after + space)
        text = rest.rstrip()
        if text:
            pieces.append(Piece(text, rest[len(text) :]))
    return pieces


def _with_last(pieces: list[Piece], after: str) -> list[Piece]:
    return [*pieces[:-1], pieces[-1]._replace(after=pieces[-1].after + after)]
