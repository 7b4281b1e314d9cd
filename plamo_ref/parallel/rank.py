"""One rank at work, and the orders that all ranks obey in the same order.

The driver, which is rank 0, schedules and samples. What it tells the others is little: where a step
is to be laid out (its `Room`), which places of the caches to copy, and to run it. Then the step's
vector follows, in one broadcast from device to device, late tokens included.

Whether a step is recorded or replayed (engine/fast/graphs.py) follows from the rooms alone, so each
rank decides the same for itself, and records the same collectives in the same order.

Invariant: an order is complete in itself; a rank that has obeyed the same orders as another one is
in the same state.
"""

import json
from collections import deque
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from plamo_ref.batch import ForwardBatch, Room
from plamo_ref.engine.memory.holding import Copy
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.parallel.group import Group
from plamo_ref.parallel.stage import StageModel


@dataclass(frozen=True)
class Place:
    """Say where a step with so much room is laid out."""

    room: Room


@dataclass(frozen=True)
class CopyPlaces:
    """Copy places of the caches."""

    copies: tuple[Copy, ...]


@dataclass(frozen=True)
class Run:
    """Take the vector of the step that was placed last, and compute it.

    Attributes:
        count: of the rows whose logits are wanted.
        in_order: they are the first ones; else the vector says which.
    """

    count: int
    in_order: bool


@dataclass(frozen=True)
class Round:
    """Move a pipeline on by one stage.

    Attributes:
        run: what was placed last comes in; None: nothing does.
        copies: made in each stage before it computes that step.
    """

    run: Run | None
    copies: tuple[Copy, ...] = ()


Order = Place | CopyPlaces | Run | Round


@dataclass(frozen=True)
class Told:
    """A step on its way through a pipeline."""

    batch: ForwardBatch  # as it was told; its own until it has come to the end
    target: ForwardBatch  # where it is computed: other steps may be computed there before
    order: Round


class Rank:
    """A runner over the heads of one rank."""

    def __init__(self, runner: ModelRunner, group: Group) -> None:
        self.runner, self.group = runner, group
        self._batch: ForwardBatch | None = None
        # By the stage that they have come to. Only a pipeline has any.
        self._steps: deque[Told | None] = deque([None] * group.stages)

    def place(self, order: Place) -> ForwardBatch:
        self._batch = self.runner.place(order.room)
        if self.group.stages > 1:
            return ForwardBatch.empty(self._batch.room, self.runner.device)
        return self._batch

    def copy(self, order: CopyPlaces) -> None:
        self.runner.copy(list(order.copies))

    def run(self, order: Run, batch: ForwardBatch) -> Tensor:
        """Logits [n, V], on every rank. `batch` is where the step was placed."""
        self.group.tell(batch.vector)
        rows = slice(0, order.count) if order.in_order else batch.logits_rows[: order.count]
        return self.runner.run(batch, rows)

    def round(self, order: Round, batch: ForwardBatch | None) -> Tensor | None:
        """Logits [n, V] of the step that has come to the last stage, on the ranks there."""
        group, steps, model = self.group, self._steps, self.runner.model
        assert isinstance(model, StageModel)
        last = group.stages - 1
        if group.stage < last and (computed := steps[group.stage]) is not None:
            group.pass_on(model.outgoing[: computed.batch.room.num_tokens])
        if group.stage > 0 and (coming := steps[group.stage - 1]) is not None:
            group.take(model.incoming[: coming.batch.room.num_tokens])
        steps.pop()
        steps.appendleft(None)
        if order.run is not None:
            target = self._batch
            assert target is not None
            batch = ForwardBatch.empty(target.room, self.runner.device) if batch is None else batch
            group.tell(batch.vector)
            steps[0] = Told(batch, target, order)
        step = steps[group.stage]
        logits = None if step is None else self._compute(step)
        return logits if group.stage == last else None

    def _compute(self, step: Told) -> Tensor:
        target, run = step.target, step.order.run
        assert run is not None
        if step.order.copies:
            self.runner.copy(list(step.order.copies))
        target.vector.copy_(step.batch.vector)
        rows = slice(0, run.count) if run.in_order else target.logits_rows[: run.count]
        return self.runner.run(target, rows)

    @property
    def is_under_way(self) -> bool:
        """Whether some stage has still to compute something."""
        return any(step is not None for step in list(self._steps)[:-1])

    def obey(self, order: Order) -> None:
        """Do what the driver does, without its results."""
        match order:
            case Place():
                self.place(order)
            case CopyPlaces():
                self.copy(order)
            case Run():
                assert self._batch is not None
                self.run(order, self._batch)
            case Round():
                self.round(order, None)


# --- orders between processes: a line of JSON each ------------------------------------------------


def encode(order: Order) -> bytes:
    """A line."""
    said: list[Any]
    match order:
        case Place(room):
            said = ["place", {field.name: getattr(room, field.name) for field in fields(room)}]
        case CopyPlaces(copies):
            said = ["copy", copies]
        case Run(count, in_order):
            said = ["run", count, in_order]
        case Round(run, copies):
            said = ["round", None if run is None else [run.count, run.in_order], copies]
    return json.dumps(said).encode() + b"\n"


def decode(line: bytes) -> Order:
    """What `encode` was given."""
    match json.loads(line):
        case ["place", room]:
            return Place(Room(**room | {"widths": tuple((kind, n) for kind, n in room["widths"])}))
        case ["copy", copies]:
            return CopyPlaces(tuple(Copy(*each) for each in copies))
        case ["run", count, in_order]:
            return Run(count, in_order)
        case ["round", run, copies]:
            told = tuple(Copy(*each) for each in copies)
            return Round(None if run is None else Run(*run), told)
        case said:
            raise ValueError(f"no order: {said}")
