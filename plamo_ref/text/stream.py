"""Token ids in, text out: half characters and half stop strings stay inside until they are decided.

Invariant: the pieces that came out, joined, are the final text: nothing is ever taken back. Where
it ends depends on its characters, not on how they were cut into tokens: at the stop string that is
complete first, and of several that are complete at once, at the one that begins first.
Built in notebooks/04b_logits_to_text.ipynb.
"""

from collections.abc import Sequence

from plamo_ref.sampling import SamplingParams
from plamo_ref.text.detokenizer import IncrementalDetokenizer
from plamo_ref.text.tokenizer import Plamo2Tokenizer


class TextStream:
    """The text of one request as it grows.

    Attributes:
        stopped_by: the stop string that ended the text, or None.
    """

    def __init__(self, tokenizer: Plamo2Tokenizer, params: SamplingParams) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, params.skip_special_tokens)
        self._tokenizer, self._skips = tokenizer, params.skip_special_tokens
        self._stops = tuple(params.stop)
        self._include_stop = params.include_stop_str_in_output
        self._free = params.min_tokens  # in so many tokens to come no stop string may end
        self._held = ""  # could still become part of a stop string
        self._exempt = 0  # in so many characters of it, its first, no stop string may end
        self._parts: list[str] = []
        self.stopped_by: str | None = None

    @property
    def text(self) -> str:
        """Everything that has come out."""
        return "".join(self._parts)

    def push(self, token_id: int) -> str:
        """The text that this token makes certain; look at `stopped_by` afterwards."""
        new = self._detokenizer.push(token_id)
        if self._free > 0:
            self._free -= 1
            self._exempt = len(self._held) + len(new)
        return self._release(new, last=False)

    def push_stop(self, token_id: int) -> str:
        """The same for a stop token, which has no text unless that was asked for."""
        return self.push(token_id) if self._include_stop else ""

    def take(self, token_id: int, *, is_stop: bool, is_last: bool) -> str:
        """The text that a token brings out. With `is_last`, or a stop string, the text is whole."""
        text = self.push_stop(token_id) if is_stop else self.push(token_id)
        return text + self.finish() if is_last or self.stopped_by is not None else text

    def take_all(self, token_ids: Sequence[int], *, ends_in_stop: bool) -> None:
        """All tokens of a text that no stop string can end, at once."""
        without = len(token_ids) - (ends_in_stop and not self._include_stop)
        self._parts.append(self._tokenizer.decode(token_ids[:without], self._skips))

    def finish(self) -> str:
        """What was held back, once it is known that no token follows."""
        return self._release(self._detokenizer.finish(), last=True)

    def _release(self, new: str, *, last: bool) -> str:
        if self.stopped_by is not None:
            return ""
        pending = self._held + new
        ends = []
        for stop in self._stops:
            start = pending.find(stop, max(0, self._exempt + 1 - len(stop)))
            if start >= 0:
                ends.append((start + len(stop), -len(stop), stop))
        if ends:
            end, _, self.stopped_by = min(ends)
            keep = end if self._include_stop else end - len(self.stopped_by)
            out, self._held = pending[:keep], ""
        else:
            keep = len(pending) - (0 if last else self._undecided(pending))
            out, self._held = pending[:keep], pending[keep:]
            self._exempt = max(0, self._exempt - keep)
        self._parts.append(out)
        return out

    def _undecided(self, pending: str) -> int:
        """Length of the longest end of `pending` that begins a stop string."""
        longest = 0
        for stop in self._stops:
            start = pending.find(stop[0], max(0, len(pending) - len(stop) + 1))
            while start >= 0 and not stop.startswith(pending[start:]):
                start = pending.find(stop[0], start + 1)
            longest = max(longest, len(pending) - start if start >= 0 else 0)
        return longest
