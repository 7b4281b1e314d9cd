"""Token ids in, text out: half characters and half stop strings stay inside until they are decided.

Invariant: the pieces that came out, joined, are the final text: nothing is ever taken back.
Built in notebooks/04_reference_generation.ipynb.
"""

from plamo_ref.detokenizer import IncrementalDetokenizer
from plamo_ref.sampling import SamplingParams
from plamo_ref.tokenizer import Plamo2Tokenizer


class TextStream:
    """The text of one request as it grows.

    Attributes:
        stopped_by: the stop string that ended the text, or None.
    """

    def __init__(self, tokenizer: Plamo2Tokenizer, params: SamplingParams) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, params.skip_special_tokens)
        self._stops = tuple(params.stop)
        self._include_stop = params.include_stop_str_in_output
        self._free = params.min_tokens  # so many tokens are not looked at for stop strings
        self._held = ""  # could still become part of a stop string
        self._parts: list[str] = []
        self.stopped_by: str | None = None

    @property
    def text(self) -> str:
        """Everything that has come out."""
        return "".join(self._parts)

    def push(self, token_id: int) -> str:
        """The text that this token makes certain; look at `stopped_by` afterwards."""
        new = self._detokenizer.push(token_id)
        if self._free <= 0 and self._stops:
            return self._release(new, last=False)
        self._free -= 1
        self._parts.append(new)
        return new

    def finish(self) -> str:
        """What was held back, once it is known that no token follows."""
        return self._release(self._detokenizer.finish(), last=True)

    def _release(self, new: str, *, last: bool) -> str:
        if self.stopped_by is not None:
            return ""
        pending = self._held + new
        found = [(pending.find(stop), stop) for stop in self._stops if stop in pending]
        if found:
            # The earliest match ends the text; of two at the same place, the longer one.
            start, stop = min(found, key=lambda match: (match[0], -len(match[1])))
            self.stopped_by = stop
            out, self._held = pending[: start + len(stop) * self._include_stop], ""
        else:
            keep = 0 if last else self._undecided(pending)
            out, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self._parts.append(out)
        return out

    def _undecided(self, pending: str) -> int:
        """Length of the longest end of `pending` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(pending)), 0, -1):
            if any(stop.startswith(pending[-size:]) for stop in self._stops):
                return size
        return 0
