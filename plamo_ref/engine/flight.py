"""A step between its launch and its landing.

Invariant: its tokens are on their way to the host from its launch on, behind nothing but the step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plamo_ref.engine.batching import BatchPlan
from plamo_ref.engine.drafts import Drafter
from plamo_ref.engine.endings import needs_host
from plamo_ref.engine.record import StepRecord
from plamo_ref.engine.request import Request

# Called after a step with its record, the requests that got a token (again for each further one),
# and their logits [n, V]. The step is done by then: what an observer raises changes nothing.
Told = tuple[StepRecord, Sequence[Request], Tensor]
Observer = Callable[[StepRecord, Sequence[Request], Tensor], None]


@dataclass(frozen=True)
class Flight:
    """A launched step."""

    plan: BatchPlan
    logits: Tensor  # [n, V], those of `plan.sampled` first
    tokens: Tensor  # [len(plan.numbers)] int64 on the device
    tokens_on_host: Tensor  # the same, once `wait` has returned
    copied: torch.cuda.Event | None
    record: StepRecord | None  # as far as it can be said; None: nobody wants to know

    @classmethod
    def of(
        cls, plan: BatchPlan, logits: Tensor, tokens: Tensor, record: StepRecord | None
    ) -> "Flight":
        """Start to copy the tokens to the host, right behind the step and before the next one."""
        on_host, copied = tokens, None
        if tokens.is_cuda:
            on_host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            on_host.copy_(tokens, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(torch.cuda.current_stream(tokens.device))
        usable = tokens.clamp(0, logits.shape[-1] - 1)  # the next step reads them, NO_TOKEN too
        return cls(plan, logits, usable, on_host, copied, record)

    def needs_host(self, has_tables: bool, drafter: Drafter | None = None) -> bool:
        """Whether it must land before the next step is decided."""
        if self.plan.drafts or (drafter is not None and drafter.wants(self.plan.sampled)):
            return True
        special = [request for request in self.plan.sampled if not request.is_plain]
        return bool(self.plan.scored) or any(needs_host(r, has_tables) for r in special)

    def wait(self) -> None:
        """Until the tokens are on the host."""
        if self.copied is not None:
            self.copied.synchronize()
