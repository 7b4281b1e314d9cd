"""Token ids to text as they arrive, for streaming.

Invariant: what all `push` calls and `finish` return, joined, is `tokenizer.decode` of all ids; no
returned piece ever has to be taken back, and none ends in half a character.
"""

import codecs
from operator import index

from plamo_ref.text.tokenizer import Plamo2Tokenizer


class IncrementalDetokenizer:
    """The text of one growing sequence of ids.

    A character may be spread over several tokens (a BYTE row is one byte of it). Bytes that could
    still become a character wait, at most three of them; once the bytes that follow settle that
    they do not, they turn into U+FFFD.
    """

    def __init__(self, tokenizer: Plamo2Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Text that the next token makes certain; often "" in the middle of a character.

        Raises:
            TokenizerError: `token_id` is negative.
        """
        number = index(token_id)  # also of NumPy and torch
        if number in self._skipped:
            return ""
        return self._decoder.decode(self._tokenizer.token_bytes(number))

    def finish(self) -> str:
        """What still waited, as U+FFFD. Afterwards the object is ready for a new sequence."""
        return self._decoder.decode(b"", final=True)
