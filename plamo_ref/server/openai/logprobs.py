"""Log probabilities in OpenAI's two shapes, columns for completions and a list for chats, and in
vLLM's for prompts.

Invariant: both name a token by the same text, and a token that is no whole character by its bytes;
every number is one that JSON has.
"""

from collections.abc import Sequence
from itertools import chain

from msgspec.structs import astuple

from plamo_ref.engine.outputs import Logprob, readable_logprobs
from plamo_ref.sampling import TokenLogprobs
from plamo_ref.server.openai.answers import ChatToken, Columns, Scored, TopToken
from plamo_ref.text.detokenizer import IncrementalDetokenizer
from plamo_ref.text.tokenizer import Plamo2Tokenizer

IMPOSSIBLE = -9999.0  # what OpenAI writes for minus infinity


def finite(logprob: float) -> float:
    return max(logprob, IMPOSSIBLE)


def token_text(tokenizer: Plamo2Tokenizer, token_id: int, as_id: bool = False) -> str:
    """The text of a token; `bytes:\\xe3` where it has only a part of a character; `token_id:7`
    where ids are wanted."""
    if as_id:
        return f"token_id:{token_id}"
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class CompletionLogprobs:
    """Columns of tokens, their log probabilities, the likeliest, and where each begins.

    One object for each choice: an offset counts the characters before its token.
    """

    def __init__(self, tokenizer: Plamo2Tokenizer, *, as_ids: bool = False) -> None:
        self._tokenizer, self._as_ids = tokenizer, as_ids
        # The ids are complete, so special tokens have their place here even if the text drops them.
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
        self._offset = 0

    def columns(self, ids: Sequence[int], scores: Sequence[TokenLogprobs | None]) -> Columns:
        """For tokens that follow those of the last call; None: nothing came before the token."""
        offsets = []
        for token_id in ids:
            offsets.append(self._offset)
            self._offset += len(self._detokenizer.push(token_id))
        return Columns(
            tokens=[self._text(token_id) for token_id in ids],
            token_logprobs=[None if s is None else finite(s.logprob) for s in scores],
            top_logprobs=[None if s is None else self._top(s) for s in scores],
            text_offset=offsets,
        )

    def _top(self, score: TokenLogprobs) -> dict[str, float]:
        """By text. The token itself is always there, and the first; of equal texts the likeliest
        counts."""
        best: dict[str, float] = {}
        for token_id, logprob in ((score.token_id, score.logprob), *score.top):
            text = self._text(token_id)
            best[text] = max(finite(logprob), best.get(text, IMPOSSIBLE))
        return best

    def _text(self, token_id: int) -> str:
        return token_text(self._tokenizer, token_id, self._as_ids)


def join_columns(parts: Sequence[Columns]) -> Columns:
    """The columns of consecutive pieces as one."""
    return Columns(*(list(chain(*columns)) for columns in zip(*map(astuple, parts), strict=True)))


def chat_entry(
    tokenizer: Plamo2Tokenizer, score: TokenLogprobs, *, as_ids: bool = False
) -> ChatToken:
    """One token of a chat."""
    first, *top = (
        (token_text(tokenizer, i, as_ids), finite(logprob), list(tokenizer.token_bytes(i)))
        for i, logprob in ((score.token_id, score.logprob), *score.top)
    )
    return ChatToken(*first, top_logprobs=[TopToken(*each) for each in top])


def prompt_entries(
    tokenizer: Plamo2Tokenizer, scores: Sequence[TokenLogprobs]
) -> list[dict[str, Scored] | None]:
    """vLLM's shape for a prompt: of each token, itself and the likeliest by id; null for the
    first, which nothing comes before."""
    readable = readable_logprobs(scores, tokenizer)
    return [None, *({str(t): _finite_entry(entry) for t, entry in of.items()} for of in readable)]


def _finite_entry(entry: Logprob) -> Scored:
    return Scored(finite(entry.logprob), entry.rank, entry.decoded_token)
