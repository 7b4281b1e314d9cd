"""Hidden states of the served model: what its last norm gives for each token of a prompt.

The prompts run as requests like any others, cut as the scheduler cuts them. Only the runner is
another one meanwhile: it keeps what it computes, and lets recordings rest, which give logits alone.

Invariant: a row is that of the request and the position for which its step's record says that it
was computed; nothing else of the engine is different, during or after.
"""

import uuid
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch
from plamo_ref.engine.batching import Rows
from plamo_ref.engine.config import EngineError
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.outputs import RequestOutput
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.intake.prompts import read_prompts
from plamo_ref.sampling import SamplingParams

Generate = Callable[..., list[RequestOutput]]


def hidden_states(core: EngineCore, generate: Generate, prompts: Any) -> list[Tensor]:
    """[tokens, D] of each prompt, on the CPU, in float32 or more.

    Args:
        generate: runs them on `core`, while nobody else does.

    Raises:
        EngineError: other processes have a part of the model.
    """
    if core.config.num_ranks > 1:
        raise EngineError(
            "hidden_states needs the whole model in one process: leave tensor_parallel_size and "
            "pipeline_parallel_size out"
        )
    asked = [
        # A salt of its own: what was computed before has no hidden states any more.
        {"prompt": each.text, "prompt_token_ids": each.token_ids, "cache_salt": uuid.uuid4().hex}
        for each in read_prompts(prompts)
    ]
    hidden = HiddenStates(core)
    try:
        hidden.begin()
        done = generate(asked, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    finally:  # also if an interrupt came into the middle of `begin`
        hidden.end()
    return [hidden.of(output.request_id, len(output.prompt_token_ids)) for output in done]


class HiddenStates:
    """Notes those of all requests of a core, from `begin` to `end`."""

    def __init__(self, core: EngineCore) -> None:
        self._core, self._runner = core, core.runner
        self._launched: deque[Tensor | None] = deque()  # [T, D] of each step that has not landed
        self._noted: dict[str, dict[int, Tensor]] = defaultdict(dict)  # by request and position

    def begin(self) -> None:
        self._core.recover()
        flight = self._core.in_flight
        if flight is not None and flight.record is not None:
            self._launched.append(None)  # launched before, and observers will be told of it
        self._core.observers.append(self._note)
        self._core.runner = _Keeping(self._runner, self._launched)

    def end(self) -> None:
        self._core.runner = self._runner
        if self._note in self._core.observers:
            self._core.observers.remove(self._note)

    def _note(self, record: StepRecord, *_: object) -> None:
        hidden, row = self._launched.popleft(), 0
        if hidden is None:
            return
        for share in record.scheduled:
            rows = hidden[row : row + share.num_tokens]
            self._noted[share.request_id][share.start] = rows.cpu()
            row += share.num_tokens + share.drafted

    def of(self, request_id: str, count: int) -> Tensor:
        """[count, D] of a request's first tokens.

        Raises:
            EngineError: it was aborted before.
        """
        chunks = self._noted[request_id]
        if max((start + len(rows) for start, rows in chunks.items()), default=0) < count:
            raise EngineError(f"request {request_id} was aborted before its prompt was computed")
        some = next(iter(chunks.values()))
        dtype = torch.promote_types(some.dtype, torch.float32)
        hidden = torch.empty(count, some.shape[1], dtype=dtype)
        for start, rows in chunks.items():
            hidden[start : start + len(rows)] = rows[: max(0, count - start)]
        return hidden


class _Keeping(ModelRunner):
    """A runner over the caches of another one."""

    def __init__(self, runner: ModelRunner, kept: deque[Tensor | None]) -> None:
        self.model, self.caches, self.recordings = runner.model, runner.caches, None
        self._kept = kept

    @torch.inference_mode()
    def run(self, batch: ForwardBatch, rows: Rows) -> Tensor:
        hidden = self.model.forward(batch, self.caches)
        self._kept.append(hidden)
        return self.model.logits(hidden[rows])
