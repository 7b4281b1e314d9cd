"""Outputs that follow a grammar: what a user may ask, and what enforces it.

Invariant: a token that the mask forbids is never chosen, and a text that ended by a stop token is
complete; a grammar that cannot be enforced is refused by name before anything runs, and one that
turns out to lead nowhere ends its request with an error that says so.
Built in notebooks/16_sampling_and_guided_decoding.ipynb.

`GuideMaker` compiles and follows grammars where it is called: the plain way, for lessons and tests.
Engines use `plamo_ref.grammar.pool.GuidePool`, whose masks are the same and are made in other
processes: a grammar can keep the library busy for minutes, or crash it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from plamo_ref.grammar.guide import FollowingGuide
from plamo_ref.grammar.matcher import Compiler, Grammar, State
from plamo_ref.grammar.source import GrammarSource, GuidedError
from plamo_ref.grammar.vocabulary import Vocabulary

if TYPE_CHECKING:
    from plamo_ref.text.tokenizer import Plamo2Tokenizer

__all__ = ["Guide", "GuideMaker", "GuidedError", "GuidedParams", "check"]


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
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise GuidedError(f"guided.{name}: expected a text, not {type(value).__name__}")
        if self.json is not None and not isinstance(self.json, str | Mapping):
            raise GuidedError(
                f"guided.json: expected an object or its text, not {type(self.json).__name__}"
            )
        assert self.source  # an object that is no JSON, or anything too long, is refused here

    @cached_property
    def source(self) -> GrammarSource:
        """The field that was given, and its value as text."""
        values = [(field.name, getattr(self, field.name)) for field in fields(self)]
        kind, value = next((n, v) for n, v in values if v is not None and v is not False)
        return GrammarSource.of(kind, value)  # type: ignore[arg-type]

    def as_text(self) -> "GuidedParams":
        """The same, with a schema as text: however deep, it travels as one string."""
        return GuidedParams(json=self.source.text) if isinstance(self.json, Mapping) else self


class Guide(Protocol):
    """The progress of one text through its grammar: a function of the tokens that it accepted.

    So a guide can be replayed: `restart(output_ids)` brings it to where these tokens lead, whatever
    was done with it before, and from there on its masks are those of a text that went there once.
    """

    def mask(self, stop_ids: Collection[int]) -> np.ndarray:
        """[V] bool: which tokens may come next; never none, unless `finished`.

        Of the request's stop tokens, those that are not text are allowed where the text is
        complete, and only there. One that is text is for the grammar to judge. Waits until the mask
        is there.

        Raises:
            GuidedError: there is an `error`.
        """
        ...

    def accept(self, token: int) -> None:
        """Move on by a token that the last mask allowed.

        Raises:
            GuidedError: it did not.
        """
        ...

    def restart(self, tokens: Sequence[int]) -> None:
        """Be where these tokens lead from the beginning."""
        ...

    def wait(self, seconds: float) -> bool:
        """Whether all below is known, after waiting for it at most so long."""
        ...

    def close(self) -> None:
        """The text is at its end, or nobody wants it any more."""
        ...

    @property
    def error(self) -> str | None:
        """Why this text can never be completed: a dead end, or a lost process; None: it can."""
        ...

    @property
    def finished(self) -> bool:
        """Whether nothing may follow."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the text so far fits."""
        ...


def check(guide: Guide) -> None:
    """Wait until a new guide's grammar is known to be one; a guide whose is none is closed.

    Raises:
        GuidedError: it cannot be enforced.
    """
    try:
        if guide.error is not None:  # waits until it is known
            raise GuidedError(guide.error)
    except BaseException:
        guide.close()
        raise


class GuideMaker:
    """Compiles grammars for one tokenizer, here and now.

    Args:
        tokenizer: its token bytes are the alphabet.
        vocab_size: width of the logits, at least the tokenizer's.
        stop_ids: tokens that end a text; the first is what the grammar sees as its end.

    Raises:
        GuidedError: llguidance is not installed.
    """

    def __init__(
        self, tokenizer: "Plamo2Tokenizer", vocab_size: int, stop_ids: Sequence[int]
    ) -> None:
        self._vocabulary = Vocabulary(tokenizer, vocab_size, stop_ids)
        self._compiler = Compiler(self._vocabulary)
        self._vocab_size = vocab_size

    def start(self, params: GuidedParams) -> Guide:
        """A guide at the beginning of its grammar.

        Raises:
            GuidedError: the grammar is malformed or asks for what cannot be enforced.
        """
        source = params.source
        grammar = self._compiler.compile(source)
        return _LocalGuide(source, grammar, self._vocab_size, self._vocabulary.not_text)


class _LocalGuide(FollowingGuide):
    """A guide whose masks are made when its tokens come."""

    def __init__(
        self,
        source: GrammarSource,
        grammar: Grammar,
        vocab_size: int,
        not_text: Collection[int],
    ) -> None:
        super().__init__(source.kind, vocab_size)
        self._grammar, self._not_text = grammar, not_text
        self._progress, self._state = grammar.begin(), grammar.first

    @property
    def not_text(self) -> Collection[int]:
        return self._not_text

    def state(self) -> State:
        return self._state

    def _moved(self) -> None:
        self._progress.accept(self.tokens[-1:])
        self._state = self._progress.state()

    def restart(self, tokens: Sequence[int]) -> None:
        self.tokens, self._progress = list(tokens), self._grammar.begin()
        self._progress.accept(self.tokens)
        self._state = self._progress.state()

    def wait(self, seconds: float) -> bool:
        return True

    def close(self) -> None:
        pass
