"""What a planted fault is made of: one thing of the real engine, replaced for a while.

Invariant: when a patch's block ends, however it ends, everything is as it was before.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from plamo_ref.batch import ForwardBatch
from plamo_ref.engine import core as core_module
from plamo_ref.engine.batching import BatchPlan
from plamo_ref.model import Plamo2Model

Check = Literal["audit", "schedule", "law", "text"]
Patch = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """One bug: its name, its story in a sentence or two, the check that catches it.

    `with fault.planted(): …` is the engine with the bug in it.
    """

    name: str
    story: str
    caught_by: Check
    planted: Patch


class StaleFaultError(BaseException):
    """A planted fault does not fit what it replaces any more."""


def patch(owner: Any, name: str, wrong: Callable[..., Any]) -> Patch:
    """Replace a method or function by `wrong`, which gets the healthy one as first argument.

    A fault that cannot take what it is given would be "caught" by its own TypeError, so the first
    call raises StaleFaultError, which no engine takes for an error of a request.
    """

    @contextmanager
    def planted() -> Iterator[None]:
        healthy, signature = vars(owner)[name], inspect.signature(wrong)
        is_first = True

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            nonlocal is_first
            if is_first:
                is_first = False
                try:
                    signature.bind(healthy, *args, **kwargs)
                except TypeError as error:
                    raise StaleFaultError(f"the fault in {name}: {error}") from None
            return wrong(healthy, *args, **kwargs)

        setattr(owner, name, stand_in)
        try:
            yield
        finally:
            setattr(owner, name, healthy)

    return planted


def patch_op(name: str, wrong: Callable[..., Any]) -> Patch:
    """Replace one kernel in whatever table the model has."""

    def forward(healthy: Any, model: Plamo2Model, batch: ForwardBatch, caches: Any) -> Tensor:
        op = getattr(model.ops, name)
        setattr(model.ops, name, lambda *args: wrong(op, *args))
        try:
            hidden: Tensor = healthy(model, batch, caches)
            return hidden
        finally:
            setattr(model.ops, name, op)

    return patch(Plamo2Model, "forward", forward)


def patch_batch(wrong: Callable[[BatchPlan], BatchPlan]) -> Patch:
    """Change what the model is told about a step."""

    def build(healthy: Any, *args: Any) -> BatchPlan:
        return wrong(healthy(*args))

    return patch(core_module, "build_batch", build)


def together(*patches: Patch) -> Patch:
    """One fault that shows in several places."""

    @contextmanager
    def planted() -> Iterator[None]:
        with ExitStack() as stack:
            for each in patches:
                stack.enter_context(each())
            yield

    return planted
