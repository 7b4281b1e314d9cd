"""One text on its way through its grammar, as the sampler sees it: a mask, then a token.

Invariant: a token that the last mask did not allow is never taken. What a guide knows is the tokens
that it has accepted, no more: `restart` with the same tokens leads to the same masks.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import numpy as np

from plamo_ref.grammar.matcher import State
from plamo_ref.grammar.source import GuidedError, Kind


class FollowingGuide(ABC):
    """What all guides share: masks and complaints, made from a state. See `sampling.Guide`.

    Args:
        kind: the field of `GuidedParams` that the grammar came from.
        vocab_size: V, width of the logits.
    """

    def __init__(self, kind: Kind, vocab_size: int) -> None:
        self.kind, self._vocab_size = kind, vocab_size
        self.tokens: list[int] = []  # accepted so far; a stop token is not among them
        self._ends: frozenset[int] = frozenset()  # what the last mask allowed besides text

    # --- for those who follow ------------------------------------------------------------------

    @property
    @abstractmethod
    def not_text(self) -> Collection[int]:
        """The ids that are no text."""

    @abstractmethod
    def state(self) -> State:
        """After the tokens so far; waits for it."""

    @abstractmethod
    def _moved(self) -> None:
        """`tokens` has one more at its end."""

    # --- for the sampler -----------------------------------------------------------------------

    def mask(self, stop_ids: Collection[int]) -> np.ndarray:
        """[V] bool, see `sampling.Guide`."""
        if self.error is not None:
            raise GuidedError(self.error)
        state = self.state()
        packed = np.frombuffer(state.mask, dtype=np.uint8)
        bits = np.unpackbits(packed, count=self._vocab_size, bitorder="little")
        allowed = bits.view(bool)
        self._ends = frozenset()
        if state.complete:
            self._ends = frozenset(stop for stop in stop_ids if stop in self.not_text)
            allowed[list(self._ends)] = True
        return allowed

    def accept(self, token: int) -> None:
        """Move on by a token; see `sampling.Guide`.

        Raises:
            GuidedError: the last mask did not allow it.
        """
        if token in self._ends:
            return
        mask = self.state().mask
        if not (0 <= token < 8 * len(mask) and mask[token >> 3] >> (token & 7) & 1):
            raise GuidedError(f"token {token} does not fit the grammar at this place")
        self.tokens.append(token)
        self._moved()

    @abstractmethod
    def restart(self, tokens: Sequence[int]) -> None:
        """Be where these tokens lead, whatever came before."""

    @abstractmethod
    def wait(self, seconds: float) -> bool:
        """Whether the mask after the last token is there, after waiting at most so long."""

    @abstractmethod
    def close(self) -> None:
        """The text is at its end."""

    @property
    def error(self) -> str | None:
        """Why this text can never be completed; None: it can, as far as is known."""
        error = self.state().error
        if error is None:
            return None
        return f"guided.{self.kind}: after {len(self.tokens)} tokens: {error}"

    @property
    def finished(self) -> bool:
        return self.error is not None or self.state().finished

    @property
    def complete(self) -> bool:
        return self.error is None and self.state().complete
