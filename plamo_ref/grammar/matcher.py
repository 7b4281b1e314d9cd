"""The grammar library, llguidance, behind three words: compile, begin, accept.

Invariant: a state's mask has text tokens only, and is empty only where the text is complete or the
state has an error. It works on the tokens' bytes, so byte-fallback tokens and Japanese need no
special case; where only one text can follow, it comes in the tokenizer's own tokens.

A grammar can make the library slow, hungry, or crash (its own limits, `LIMITS`, bound some of it):
`plamo_ref.grammar.worker` runs this in a process that may be lost.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plamo_ref.grammar.source import GrammarSource, GuidedError
from plamo_ref.grammar.vocabulary import Vocabulary

if TYPE_CHECKING:
    import llguidance

# White space between the parts of a JSON text is legal and never ends: small models love it.
COMPACT: Any = {"whitespace_flexible": False}
MAX_LINE = 300  # characters of a line of the library's message, which may quote the grammar
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,  # about 20 ms of building expressions
    "step_lexer_fuel": 200_000,  # 15 ms of one mask
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "max_lexer_states": 100_000,  # at 1 to 2 kB
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}


@dataclass(frozen=True)
class State:
    """Where a text stands in its grammar."""

    mask: bytes  # one bit a token, the lowest first: the text tokens that may come next
    complete: bool  # the text fits as it is
    finished: bool  # nothing may follow
    error: str | None = None  # why the text can never be completed


class Compiler:
    """Compiles grammars for one vocabulary.

    Raises:
        GuidedError: llguidance is not installed.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        try:
            import llguidance
        except ImportError:
            raise GuidedError("guided decoding needs llguidance: pip install llguidance") from None
        self._lib = llguidance
        self._text_bits = vocabulary.text_bits
        self._tokens = llguidance.LLTokenizer(llguidance.TokenizerWrapper(vocabulary))
        self._limits = llguidance.LLParserLimits(**LIMITS)

    def compile(self, source: GrammarSource) -> "Grammar":
        """Its grammar, ready to be followed.

        Raises:
            GuidedError: it is malformed, asks for what cannot be enforced, or nothing fits it.
        """
        grammar = self._grammar(source)
        matcher = self._lib.LLMatcher(self._tokens, grammar, log_level=0, limits=self._limits)
        messages = [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings()
        if messages:
            raise GuidedError(f"guided.{source.kind}: {_reason(messages[0])}")
        compiled = Grammar(matcher, self._text_bits)
        if compiled.first.error is not None and matcher.is_error():
            raise GuidedError(f"guided.{source.kind}: {compiled.first.error}")
        if compiled.first.finished:
            raise GuidedError(f"guided.{source.kind}: no text fits, except perhaps the empty one")
        return compiled

    def _grammar(self, source: GrammarSource) -> str:
        """In the library's own form."""
        make, (kind, text) = self._lib.LLMatcher, source
        try:
            if kind == "json_object":
                return make.grammar_from_json_schema({"type": "object"}, COMPACT)
            if kind == "json":
                schema = json.loads(text)
                if not isinstance(schema, Mapping):
                    raise TypeError(f"expected an object, not {schema!r}")
                return make.grammar_from_json_schema(dict(schema), COMPACT)
            if kind == "grammar":
                return make.grammar_from_lark(text)
            pattern = text if kind == "regex" else "|".join(map(_literal, json.loads(text)))
            return make.grammar_from_regex(pattern)
        except RecursionError:
            raise GuidedError(f"guided.{kind}: nested too deep") from None
        except (ValueError, TypeError) as error:  # also a lone surrogate, which is no text
            raise GuidedError(f"guided.{kind}: {_reason(str(error))}") from None


class Grammar:
    """A compiled grammar; any number of texts may follow it."""

    def __init__(self, matcher: "llguidance.LLMatcher", text_bits: int) -> None:
        self._matcher, self._text_bits = matcher, text_bits
        self.first = self.begin().state()

    def begin(self) -> "Progress":
        return Progress(self._matcher.deep_copy(), self._text_bits)


class Progress:
    """One text on its way through a grammar."""

    def __init__(self, matcher: "llguidance.LLMatcher", text_bits: int) -> None:
        self._matcher, self._text_bits = matcher, text_bits

    def accept(self, tokens: Sequence[int]) -> None:
        """Move on. What does not fit, or is too much for the library, is the state's error."""
        self._matcher.consume_tokens(list(tokens))

    def state(self) -> State:
        """The mask is computed here."""
        matcher, mask = self._matcher, 0
        size = (self._text_bits.bit_length() + 7) // 8
        if not matcher.is_stopped():
            packed = matcher.compute_bitmask()
            size, mask = len(packed), int.from_bytes(packed, "little") & self._text_bits
        if matcher.is_error():
            return State(bytes(size), False, True, _reason(matcher.get_error()))
        complete = matcher.is_accepting()
        error = None if mask or complete else "no text that fits can follow"
        finished = not mask or matcher.is_stopped()
        return State(mask.to_bytes(size, "little"), complete, finished, error)


def _literal(text: str) -> str:
    """A regex for exactly this text."""
    return "".join(c if c.isalnum() else rf"\x{{{ord(c):X}}}" for c in text)


def _reason(message: str) -> str:
    """The library's message in one line: what, and (after a drawing of where) why."""
    first, *others = message.strip().splitlines() or ["not understood"]
    errors = [line for line in others if line.startswith("error:")]
    return " ".join(
        line if len(line) <= MAX_LINE else line[:MAX_LINE] + "…" for line in [first, *errors]
    )
