"""Outputs that follow a grammar: what a user may ask, and the masks that enforce it.

Invariant: a token that the mask forbids is never chosen; a grammar that cannot be enforced
completely is refused by name before anything runs. The grammar engine is llguidance, working on
the tokens' bytes, so byte-fallback tokens and Japanese need no special case.
Built in notebooks/16_sampling_and_guided_decoding.ipynb.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

    def mask(self) -> np.ndarray:
        """[V] bool: which tokens may come next."""
        ...

    def accept(self, token: int) -> None:
        """Move on by a token that the mask allows."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing may follow."""
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
        self._vocab_size, self._stop_ids = vocab_size, tuple(stop_ids)
        self._tokens = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(tokenizer, vocab_size, stop_ids))
        )

    def start(self, params: GuidedParams) -> Guide:
        """A guide at the beginning of its grammar.

        Raises:
            GuidedError: the grammar is malformed or asks for what cannot be enforced.
        """
        name, grammar = self._grammar(params)
        failed, messages = self._lib.LLMatcher.validate_grammar_with_warnings(grammar, self._tokens)
        if failed or messages:
            first = messages[0].strip().splitlines()[0] if messages else "not understood"
            raise GuidedError(f"guided.{name}: {first}")
        matcher = self._lib.LLMatcher(self._tokens, grammar)
        if matcher.is_error():
            raise GuidedError(f"guided.{name}: {matcher.get_error().strip().splitlines()[0]}")
        return _MatcherGuide(matcher, self._vocab_size, self._stop_ids)

    def _grammar(self, params: GuidedParams) -> tuple[str, str]:
        """The field that was given, and its grammar in the library's own form."""
        make = self._lib.LLMatcher
        try:
            if params.json is not None:
                schema = json.loads(params.json) if isinstance(params.json, str) else params.json
                return "json", make.grammar_from_json_schema(dict(schema), COMPACT)
            if params.json_object:
                return "json_object", make.grammar_from_json_schema({"type": "object"}, COMPACT)
        except (ValueError, TypeError) as error:
            raise GuidedError(f"guided.json: not a JSON schema: {error}") from None
        if params.regex is not None:
            return "regex", make.grammar_from_regex(params.regex)
        if params.choice is not None:
            options = " | ".join(json.dumps(text, ensure_ascii=False) for text in params.choice)
            return "choice", make.grammar_from_lark(f"start: {options}")
        assert params.grammar is not None  # GuidedParams has exactly one field
        return "grammar", make.grammar_from_lark(params.grammar)


class _Vocabulary:
    """A tokenizer as the grammar engine wants to see it."""

    def __init__(
        self, tokenizer: "Plamo2Tokenizer", vocab_size: int, stop_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = stop_ids[0] if stop_ids else tokenizer.eos_token_id or 0
        self.bos_token_id = tokenizer.bos_token_id
        # Control tokens are not text; ids beyond the tokenizer's rows have none.
        control = tokenizer.control_ids | set(range(tokenizer.vocab_size, vocab_size))
        self.special_token_ids = sorted(control)
        self.tokens = [
            # 0xFF is in no UTF-8 text: so the grammar engine marks what is not text.
            b"\xff<|%d|>" % i if i in control else tokenizer.token_bytes(i)
            for i in range(vocab_size)
        ]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_bos=False)


class _MatcherGuide:
    """A grammar's progress through one output."""

    def __init__(
        self, matcher: "llguidance.LLMatcher", vocab_size: int, stop_ids: Sequence[int]
    ) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size
        self._stop_ids = list(stop_ids)

    def mask(self) -> np.ndarray:
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(packed, bitorder="little")[: self._vocab_size].astype(bool)
        if self._stop_ids:
            allowed[self._stop_ids] = self._matcher.is_accepting()
        return allowed

    def accept(self, token: int) -> None:
        if token in self._stop_ids:
            return
        if not self._matcher.consume_token(token):
            raise GuidedError(
                f"token {token} does not fit the grammar: {self._matcher.get_error()}"
            )

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped())
