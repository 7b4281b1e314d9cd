"""Where other conversations may part from this one: only who knows its messages can say.

The engine learns from the second prompt where two of them part, so only the third can begin there.
Conversations part at the beginning of a message: of the first one behind the instructions (others
have the same instructions), and of the last one (others ask something else about the same text).

Invariant: a border is a hint, and no text depends on it: wherever it lies, what is computed is the
same.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from plamo_ref.text.tokenizer import Plamo2Tokenizer

INSTRUCTIONS = ("system", "developer")  # roles


def borders(
    messages: Sequence[Mapping[str, Any]], text: str, ids: Sequence[int], tokenizer: Plamo2Tokenizer
) -> list[int]:
    """Positions in `ids`, the tokens of `text`, which a template has made of `messages`."""
    places = [len(text[:at].encode()) for at in dict.fromkeys(_beginnings(messages, text))]
    lengths = [len(tokenizer.token_bytes(token)) for token in ids]
    ends = np.cumsum(lengths, dtype=np.int64)  # [T] bytes up to the end of each token
    if not places or not len(ends):
        return []
    before = int(ends[-1]) - len(text.encode())  # of a BOS that the text does not have
    return [int(np.searchsorted(ends, place + before, side="right")) for place in places]


def _beginnings(messages: Sequence[Mapping[str, Any]], text: str) -> Iterator[int]:
    """Where, in characters, the first message of the conversation begins, and the last one."""
    roles = [message["role"] in INSTRUCTIONS for message in messages]
    wanted, at = {roles.index(False) if False in roles else -1, len(messages) - 1}, 0
    for number, message in enumerate(messages):
        content = message.get("content") or ""
        content = content.strip() if isinstance(content, str) else ""  # as some templates do
        found = text.find(content, at)
        if found < 0:
            return  # written in another way: nobody knows where
        if number in wanted:
            yield found
        at = found + len(content)
