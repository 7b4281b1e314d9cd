"""Outputs that follow a grammar: what a user may ask, and the masks that enforce it.

Invariant: a token that the mask forbids is never chosen, and a text that ended by a stop token is
complete; a grammar that cannot be enforced is refused by name before anything runs. The grammar
engine is llguidance, working on the tokens' bytes, so byte-fallback tokens and Japanese need no
special case. Where only one text can follow, it comes in the tokenizer's own tokens.
Built in notebooks/16_sampling_and_guided_decoding.ipynb.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from plamo_ref.errors import PlamoRefError

if TYPE_CHECKING:
    import llguidance

    from plamo_ref.tokenizer import Plamo2Tokenizer


# White space between the parts of a JSON text is legal and never ends: small models love it.
COMPACT: Any = {"whitespace_flexible": False}


class GuidedError(PlamoRefError, ValueError):
    """A grammar that is wrong or that cannot be enforced; the message says where."""


@dataclass(frozen=True, kw_only=True)
class GuidedParams:
    """Exactly one of the fields is given."""

    json: str | Mapping[str, Any] | None = None  # a JSON schema
    json_object: bool = False  # any JSON object
    regex: str | None = None
    choice: Sequence[str] | None = None  # one of these texts
    grammar: str | None = None  # in Lark's notation

    def __post_init__(self) -> None:
        given = [self.json, self.json_object or None, self.regex, self.choice, self.grammar]
        if sum(field is not None for field in given) != 1:
            raise GuidedError(
                "guided: give exactly one of json, json_object, regex, choice, grammar"
            )
        if self.choice is not None and not all(isinstance(c, str) and c for c in self.choice):
            raise GuidedError("guided.choice: expected texts, none of them empty")
        if self.choice is not None and (isinstance(self.choice, str) or not self.choice):
            raise GuidedError("guided.choice: expected a list of at least one text")


class Guide(Protocol):
    """The state of one request's grammar."""

    def mask(self, stop_ids: Collection[int]) -> np.ndarray:
        """[V] bool: which tokens may come next; never none.

        Of the request's stop tokens, those that are not text are allowed where the text is
        complete, and only there. One that is text is for the grammar to judge.
        """
        ...

    def accept(self, token: int) -> None:
        """Move on by a token that the last mask allowed."""
        ...

    def replay(self, token_ids: Sequence[int], stop_ids: Collection[int]) -> None:
        """Go back to the beginning, then over these tokens, which it has allowed before.

        Where the guide stood does not matter, not even if an error left it half way.
        """
        ...

    @property
    def finished(self) -> bool:
        """Whether nothing may follow."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the text so far fits. Finished but not complete: the grammar has a dead end."""
        ...


class GuideMaker:
    """Compiles grammars for one tokenizer.

    Args:
        tokenizer: its token bytes are the alphabet.
        vocab_size: width of the logits, at least the tokenizer's.
        stop_ids: tokens that end a text; the first is what the grammar sees as its end.
    """

    def __init__(
        self, tokenizer: "Plamo2Tokenizer", vocab_size: int, stop_ids: Sequence[int]
    ) -> None:
        try:
            import llguidance
        except ImportError:
            raise GuidedError("guided decoding needs llguidance: pip install llguidance") from None
        self._lib = llguidance
        self._vocab_size = vocab_size
        self._vocabulary = _Vocabulary(tokenizer, vocab_size, stop_ids)
        self._tokens = llguidance.LLTokenizer(llguidance.TokenizerWrapper(self._vocabulary))

    def start(self, params: GuidedParams) -> Guide:
        """A guide at the beginning of its grammar.

        Raises:
            GuidedError: the grammar is malformed or asks for what cannot be enforced.
        """
        name, grammar = self._grammar(params)
        failed, messages = self._lib.LLMatcher.validate_grammar_with_warnings(grammar, self._tokens)
        if failed or messages:
            raise GuidedError(f"guided.{name}: {_reason(*messages[:1])}")
        matcher = self._lib.LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise GuidedError(f"guided.{name}: {_reason(matcher.get_error())}")
        guide = _MatcherGuide(matcher, self._vocab_size, self._vocabulary)
        if not guide.mask(()).any() or guide.finished:
            raise GuidedError(f"guided.{name}: no text fits, except perhaps the empty one")
        return guide

    def _grammar(self, params: GuidedParams) -> tuple[str, str]:
        """The field that was given, and its grammar in the library's own form."""
        make = self._lib.LLMatcher
        given = [(f.name, getattr(params, f.name)) for f in fields(params)]
        name, value = next((n, v) for n, v in given if v is not None and v is not False)
        try:
            if name == "json_object":
                return name, make.grammar_from_json_schema({"type": "object"}, COMPACT)
            if name == "json":
                schema = json.loads(value) if isinstance(value, str) else value
                if not isinstance(schema, Mapping):
                    raise TypeError(f"expected an object, not {schema!r}")
                return name, make.grammar_from_json_schema(dict(schema), COMPACT)
            if name == "grammar":
                return name, make.grammar_from_lark(value)
            pattern = value if name == "regex" else "|".join(map(_literal, value))
            return name, make.grammar_from_regex(pattern)
        except (ValueError, TypeError) as error:  # also a lone surrogate, which is no text
            raise GuidedError(f"guided.{name}: {error}") from None


def _literal(text: str) -> str:
    """A regex for exactly this text."""
    return "".join(c if c.isalnum() else rf"\x{{{ord(c):X}}}" for c in text)


def _reason(message: str = "not understood") -> str:
    """The library's message in one line: what, and (after a drawing of where) why."""
    first, *others = message.strip().splitlines()
    return " ".join([first, *(line for line in others if line.startswith("error:"))])


class _Vocabulary:
    """A tokenizer as the grammar engine wants to see it."""

    def __init__(
        self, tokenizer: "Plamo2Tokenizer", vocab_size: int, stop_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = stop_ids[0] if stop_ids else tokenizer.eos_token_id or 0
        self.bos_token_id = tokenizer.bos_token_id
        # Control tokens are not text; ids beyond the tokenizer's rows have none.
        self.not_text = tokenizer.control_ids | set(range(tokenizer.vocab_size, vocab_size))
        self.special_token_ids = sorted(self.not_text)
        self.tokens = [
            # 0xFF is in no UTF-8 text: so the grammar engine marks what is not text.
            b"\xff<|%d|>" % i if i in self.not_text else tokenizer.token_bytes(i)
            for i in range(vocab_size)
        ]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_bos=False)


class _MatcherGuide:
    """A grammar's progress through one output."""

    def __init__(
        self, matcher: "llguidance.LLMatcher", vocab_size: int, vocabulary: _Vocabulary
    ) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size
        self._end, self._not_text = vocabulary.eos_token_id, vocabulary.not_text
        self._allowed = np.zeros(vocab_size, dtype=bool)  # the last mask
        self._ends: list[int] = []  # what it allowed besides text

    def mask(self, stop_ids: Collection[int]) -> np.ndarray:
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(packed, bitorder="little")[: self._vocab_size].astype(bool)
        self._ends = sorted(self._not_text.intersection(stop_ids))
        allowed[self._end] = False  # the library's idea of an end is not this request's
        allowed[self._ends] = self.complete
        if self.finished and not self.complete:  # a dead end shows only now: nothing fits
            self._ends = [self._end]
            allowed[self._end] = True
        self._allowed = allowed
        return allowed

    def accept(self, token: int) -> None:
        if not self._allowed[token]:
            raise GuidedError(f"token {token} does not fit the grammar at this place")
        if token not in self._ends:
            self._matcher.consume_token(token)  # may find the grammar too complex: a dead end

    def replay(self, token_ids: Sequence[int], stop_ids: Collection[int]) -> None:
        ends = self._not_text.intersection(stop_ids)
        self._matcher.reset()
        for token in token_ids:
            if token not in ends:
                self._matcher.consume_token(token)

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped())

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_accepting() and not self._matcher.is_error())
