"""Log probabilities in OpenAI's two shapes: columns for completions, a list for chats.

Invariant: both name a token by the same text, and a token that is no whole character by its bytes;
every number is one that JSON has.
"""

from collections.abc import Sequence
from typing import Any

from plamo_ref.detokenizer import IncrementalDetokenizer
from plamo_ref.sampling import TokenLogprobs
from plamo_ref.tokenizer import Plamo2Tokenizer

IMPOSSIBLE = -9999.0  # what OpenAI writes for minus infinity


def finite(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE)


def token_text(tokenizer: Plamo2Tokenizer, token_id: int) -> str:
    """The text of a token; `bytes:\\xe3` where it has only a part of a character."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class CompletionLogprobs:
    """Columns of tokens, their log probabilities, the likeliest, and where each begins.

    One object for each choice: an offset counts the characters before its token.
    """

    def __init__(self, tokenizer: Plamo2Tokenizer) -> None:
        self._tokenizer = tokenizer
        # The ids are complete, so special tokens have their place here even if the text drops them.
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
        self._offset = 0

    def columns(self, ids: Sequence[int], scores: Sequence[TokenLogprobs | None]) -> dict[str, Any]:
        """For tokens that follow those of the last call; None: nothing came before the token."""
        offsets = []
        for token_id in ids:
            offsets.append(self._offset)
            self._offset += len(self._detokenizer.push(token_id))
        return {
            "tokens": [token_text(self._tokenizer, token_id) for token_id in ids],
            "token_logprobs": [None if s is None else finite(s.logprob) for s in scores],
            "top_logprobs": [None if s is None else self._top(s) for s in scores],
            "text_offset": offsets,
        }

    def _top(self, score: TokenLogprobs) -> dict[str, float]:
        """By text. The token itself is always there; of equal texts the likeliest counts."""
        best: dict[str, float] = {}
        for token_id, logprob in (*score.top, (score.token_id, score.logprob)):
            best.setdefault(token_text(self._tokenizer, token_id), finite(logprob))
        return best


def join_columns(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The columns of consecutive pieces as one."""
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [value for part in parts for value in part[name]] for name in names}


def chat_entry(tokenizer: Plamo2Tokenizer, score: TokenLogprobs) -> dict[str, Any]:
    """One token of a chat."""
    top = [_entry(tokenizer, token_id, logprob) for token_id, logprob in score.top]
    return {**_entry(tokenizer, score.token_id, score.logprob), "top_logprobs": top}


def _entry(tokenizer: Plamo2Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": token_text(tokenizer, token_id),
        "logprob": finite(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }
