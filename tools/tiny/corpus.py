"""Text files → passages → batches of token ids.

Invariant: a batch depends on (texts, seed, step) alone, so a run can stop and go on exactly; no
held-out passage is ever in a batch.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PASSAGE_CHARS = (80, 1500)  # passages are cut at the first paragraph end after a random length


def passages(text: str, rng: random.Random) -> list[str]:
    """Cut a text into passages of whole paragraphs."""
    found: list[str] = []
    current, wanted = "", rng.randint(*PASSAGE_CHARS)
    for line in text.splitlines(keepends=True):
        current = (current + line).lstrip("\n")  # a passage opens with its first words
        if len(current) >= wanted:
            found.append(current)
            current, wanted = "", rng.randint(*PASSAGE_CHARS)
    return [*found, current] if current.strip() else found


@dataclass(frozen=True)
class Split:
    train: list[str]
    held_out: list[str]


def split(texts: Sequence[str], *, held_out_share: float, seed: int) -> Split:
    """Every passage goes to training or, with probability `held_out_share`, to the held-out set.

    Raises:
        ValueError: there are fewer than two passages, one for each.
    """
    rng = random.Random(seed)
    train: list[str] = []
    held_out: list[str] = []
    for text in texts:
        for passage in passages(text, rng):
            (held_out if rng.random() < held_out_share else train).append(passage)
    if len(train) + len(held_out) < 2:
        raise ValueError("the text is one short passage: give more, some of it is held out")
    if not held_out:
        held_out.append(train.pop())
    return Split(train, held_out)


def unindented(texts: Sequence[str], share: float, seed: int) -> list[str]:
    """The texts, of which about `share` lose the white space that they open with.

    A Japanese paragraph opens with a wide space and a prompt does not: a model that never saw one
    without the other takes a bare prompt for something else.
    """
    rng = random.Random(seed)
    return [text.lstrip() if rng.random() < share else text for text in texts]


class Batches:
    """The training stream: passages shuffled anew each epoch, each as BOS … EOS, cut into rows."""

    def __init__(self, encoded: Sequence[list[int]], *, rows: int, length: int, seed: int) -> None:
        self.encoded = [np.array(ids, dtype=np.int32) for ids in encoded]
        self.rows, self.length, self.seed = rows, length, seed
        tokens = sum(len(ids) for ids in self.encoded)
        self.steps_per_epoch = (tokens - 1) // (rows * length)
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"the text has {tokens} tokens; one batch needs {rows * length + 1}: "
                "give more text, or lower --batch or --length"
            )
        self._epoch, self._stream = -1, np.empty(0, dtype=np.int32)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, each [rows, length]."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = list(range(len(self.encoded)))
            random.Random(f"{self.seed}/{epoch}").shuffle(order)
            self._epoch = epoch
            self._stream = np.concatenate([self.encoded[i] for i in order])
        size = self.rows * self.length
        part = torch.from_numpy(self._stream[index * size : (index + 1) * size + 1]).long()
        return part[:-1].view(self.rows, -1), part[1:].view(self.rows, -1)


def encode_passages(
    texts: Sequence[str], encode: Callable[[str], list[int]], bos: int, eos: int
) -> list[list[int]]:
    return [[bos, *encode(text), eos] for text in texts]
