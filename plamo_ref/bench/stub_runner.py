"""A runner for the engine that computes nothing: to see what the host does without a model.

Invariant: it answers as a model would that always says token 0, and keeps the time.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.batching import Rows
from plamo_ref.engine.memory.holding import Copy
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.kernels.choice import TORCH
from plamo_ref.linear import Linear
from plamo_ref.model import Plamo2Model


class StubRunner(ModelRunner):
    """Answers as a model would that always says token 0, and only keeps the time."""

    def __init__(self, vocab_size: int, step_time: Callable[[int, int], float]) -> None:
        nothing = torch.empty(vocab_size, 0)
        head = Linear(nothing, TORCH)
        config = Plamo2Config(vocab_size=vocab_size, bos_token_id=None, eos_token_id=None)
        self.model = Plamo2Model(config, nothing, (), nothing, head, TORCH)
        self.caches, self.recordings = (), None
        self.clock = 0.0
        self.times: list[tuple[float, float]] = []  # of each step: when it began, how long it took
        self._step_time = step_time
        self._logits = torch.zeros(1, vocab_size)

    def copy(self, copies: list[Copy]) -> None:
        copies.clear()

    def run(self, batch: ForwardBatch, rows: Rows) -> Tensor:
        duration = self._step_time(batch.room.num_tokens, batch.room.num_requests)
        self.times.append((self.clock, duration))
        self.clock += duration
        return self._logits.expand(len(batch.token_ids[rows]), -1)
