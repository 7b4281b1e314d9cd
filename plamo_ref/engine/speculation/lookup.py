"""The text of one request, in which its own continuation is looked up.

The newest n tokens, n from the most to the least, are sought earlier in the text; what followed
them there is the guess. A guess that comes true is followed on; only where the text leaves what it
followed is looked up again. Each token is one more prediction that came true or not, whether or not
it was drafted: so what a guess is worth is known before any has cost something.

Invariant: everything follows from the request's known tokens; an n-gram is indexed once, and none
before there is a token behind it. A guess decides nothing: whoever takes it checks it.
Built in notebooks/16_sampling_and_guided_decoding.ipynb.
"""

import math

from plamo_ref.engine.request import Request

WEIGHT = 1 / 8  # of the newest prediction in the average
FIRST = 0.5  # chance of a guess of which nothing is known
MOST_INDEXED = 4096  # tokens at a time: of a long prompt the rest comes later
LEAST = 0.3  # chance that the last token of a draft is right


class Lookup:
    """Guesses for one request, from n-grams of `least` to `most` tokens."""

    def __init__(self, request: Request, least: int, most: int) -> None:
        self._outputs = request.output_ids
        self._text = list(request.prompt_ids)
        self._num_prompt = len(self._text)
        self._sizes = range(most, least - 1, -1)
        self._index: dict[tuple[int, ...], int] = {}  # n-gram → position behind its last occurrence
        self._num_indexed = 0  # tokens of which every n-gram that ends before them is there
        self.next: int | None = None  # where the text that is followed goes on
        self.chance = FIRST  # that the next guess is right

    def read(self) -> None:
        """Take in the tokens that have come."""
        text = self._text
        new = self._outputs[len(text) - self._num_prompt :]
        for token in new:
            at = self.next
            if at is not None:
                is_right = text[at] == token
                self.chance += WEIGHT * (is_right - self.chance)
                self.next = at + 1 if is_right else None
            text.append(token)
        if new and self.next is None:
            self.next = self._find()

    def _find(self) -> int | None:
        """Behind the last earlier occurrence of the longest n-gram that the text ends with."""
        text, index = self._text, self._index
        begun = self._num_indexed
        end = min(len(text), begun + MOST_INDEXED)
        for size in self._sizes:
            first = max(begun, size)
            parts = (text[first - size + i : end - size + i] for i in range(size))
            grams = zip(*parts, strict=False)
            index.update(zip(grams, range(first, end), strict=False))
        self._num_indexed = end
        found = (index.get(tuple(text[-size:])) for size in self._sizes if size < len(text))
        return next((at for at in found if at is not None), None)

    @property
    def most(self) -> int:
        """Tokens of a draft of which the last is still likely enough."""
        if self.next is None or self.chance < LEAST:
            return 0
        return int(math.log(LEAST) / math.log(min(self.chance, 0.999)))

    def gain(self, count: int) -> float:
        """Of so many guesses, how many are right, on average."""
        chance = min(self.chance, 0.999)
        return chance * (1 - chance**count) / (1 - chance)

    def guess(self, count: int) -> list[int]:
        """The next tokens; a text that repeats itself goes on with that."""
        if self.next is None:
            return []
        text = self._text + [0] * count
        for i in range(count):
            text[len(self._text) + i] = text[self.next + i]
        return text[len(self._text) :]
