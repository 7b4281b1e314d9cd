"""A tokenizer as the grammar library wants to see it: bytes for every id, and a way to cut text.

Invariant: text is spelt with text tokens only. `<|plamo:eos|>` in a grammar is thirteen characters
like any others; the control token of that name is never among the tokens that spell it.
"""

from collections.abc import Sequence

from plamo_ref.text.tokenizer import Plamo2Tokenizer


class Vocabulary:
    """What `llguidance.TokenizerWrapper` reads.

    Args:
        vocab_size: width of the logits, at least the tokenizer's.
        stop_ids: tokens that end a text; the first is what the library sees as its end.
    """

    def __init__(
        self, tokenizer: Plamo2Tokenizer, vocab_size: int, stop_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = stop_ids[0] if stop_ids else tokenizer.eos_token_id or 0
        self.bos_token_id = tokenizer.bos_token_id
        self.not_text = not_text(tokenizer, vocab_size)
        self.special_token_ids = sorted(self.not_text)
        self.tokens = [
            # 0xFF is in no UTF-8 text: so the grammar library marks what is not text.
            b"\xff<|%d|>" % i if i in self.not_text else tokenizer.token_bytes(i)
            for i in range(vocab_size)
        ]
        # One bit a token: set for text. A grammar may name other tokens; nobody gets them.
        self.text_bits = (1 << vocab_size) - 1
        for i in self.not_text:
            self.text_bits &= ~(1 << i)

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_bos=False, specials=False)


def not_text(tokenizer: Plamo2Tokenizer, vocab_size: int) -> frozenset[int]:
    """Control tokens, and the ids beyond the tokenizer's rows, which have no text."""
    return tokenizer.control_ids | frozenset(range(tokenizer.vocab_size, vocab_size))
