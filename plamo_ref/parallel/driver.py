"""Rank 0: it schedules and samples in the caller's process, and runs its part like the others.

Invariant: to the core it is a runner like any other; every order is told to all ranks and obeyed
here in the same order (hand.py), and what cannot be finished ends this engine with an `EngineError`
that names the rank.
"""

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from plamo_ref.batch import ForwardBatch, Room
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.batching import BatchPlan, Rows
from plamo_ref.engine.config import EngineConfig, EngineError
from plamo_ref.engine.fast.graphs import DECODES, TOKENS
from plamo_ref.engine.memory.holding import Copy
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.kernels.choice import can_overlap
from plamo_ref.kernels.table import Kernels
from plamo_ref.model import Plamo2Model
from plamo_ref.parallel.crew import Crew
from plamo_ref.parallel.cut import check_cut, of_rank
from plamo_ref.parallel.group import Group, TorchGroup
from plamo_ref.parallel.hand import Hand
from plamo_ref.parallel.model import load_random, load_stored
from plamo_ref.parallel.rank import CopyPlaces, Order, Place, Rank, Round, Run
from plamo_ref.parallel.stage import StageModel, check_stages, widest
from plamo_ref.weights.loading import StoredWeights
from plamo_ref.weights.random import RandomWeights

T = TypeVar("T")
Loader = Callable[[Kernels, torch.dtype, torch.device], Plamo2Model]
# A model, settings, a loader, and how the ranks agree on a number of bytes → a runner and its plan.
RunnerBuilder = Callable[
    [Plamo2Config, EngineConfig, Loader, Callable[[int], int]], tuple[ModelRunner, MemoryPlan]
]


class Others(Protocol):
    """The other ranks, as the driver knows them."""

    def send(self, order: Order) -> None:
        """Tell all of them."""
        ...

    def close(self) -> None:
        """End them."""
        ...


class SharedRunner(ModelRunner):
    """A model that several ranks share; `caches` are the driver's own."""

    def __init__(self, rank: Rank, others: Others, hand: Hand) -> None:
        own = rank.runner
        self.model, self.caches, self.recordings = own.model, own.caches, own.recordings
        self._rank, self._others, self._hand = rank, others, hand
        self.is_pipeline = rank.group.stages > 1
        # Who forgets to close has no processes left behind either.
        self._end = weakref.finalize(self, _end, others, hand)

    def place(self, room: Room) -> ForwardBatch:
        order = Place(room)
        placed = self._start(order, partial(self._rank.place, order))
        if self.is_pipeline and self._rank.runner.recordings is None:
            return ForwardBatch.empty(room, self.device)  # as the rank will say: wait for nothing
        return self._hand.result(placed)

    def copy(self, copies: list[Copy]) -> None:
        order = CopyPlaces(tuple(copies))
        self._together(order, partial(self._rank.copy, order))
        copies.clear()

    def run(self, batch: ForwardBatch, rows: Rows) -> Tensor:
        order = _run_of(rows)
        return self._together(order, partial(self._rank.run, order, batch))

    def start_round(
        self, plan: BatchPlan | None, copies: list[Copy]
    ) -> Callable[[], Tensor | None]:
        """Let a pipeline's stages compute, and `plan` come into the first one.

        Returns what waits for this and gives the logits [n, V] of the step that came to the last
        stage; None: none did.
        """
        run, batch = (None, None) if plan is None else (_run_of(plan.rows), plan.batch)
        order = Round(run, tuple(copies))
        started = self._start(order, partial(self._rank.round, order, batch))
        copies.clear()
        return partial(self._hand.result, started)

    def drain(self) -> None:
        """Let what is under way in a pipeline come to its end."""
        with suppress(EngineError):  # a rank has failed, and so nothing is under way
            while self._hand.do(lambda: self._rank.is_under_way):
                self.start_round(None, [])()

    def check(self) -> None:
        """Raises EngineError: a rank has failed, so what was computed is worth nothing."""
        self._hand.check()

    def close(self) -> None:
        """End the other ranks' processes."""
        # A group cannot be left while a recorded step holds on to what its ranks do together.
        self.recordings = self._rank.runner.recordings = None
        self._end()

    def _together(self, order: Order, own: Callable[[], T]) -> T:
        return self._hand.result(self._start(order, own))

    def _start(self, order: Order, own: Callable[[], T]) -> "Future[T]":
        others = self._others

        def work() -> T:
            others.send(order)
            return own()

        return self._hand.start(work)


def _run_of(rows: Rows) -> Run:
    if isinstance(rows, slice):
        return Run(rows.stop, in_order=True)
    return Run(len(rows), in_order=False)


def _end(others: Others, hand: Hand) -> None:
    hand.finish()  # what was started needs the others
    others.close()
    hand.stop()


class Processes(Crew):
    """The other ranks as processes, and the group that they are in with this one."""

    def __init__(self, size: int) -> None:
        super().__init__(size, self._break_up)
        self.group: TorchGroup | None = None

    @property
    def meeting(self) -> Path:
        return Path(self.home.name) / "meeting"

    def _leave(self) -> None:
        group, self.group = self.group, None
        if group is not None:
            group.leave()

    def _break_up(self) -> None:
        if self.group is not None:
            self.group.break_up()


def build_driver(
    model: Plamo2Config, engine: EngineConfig, load: Loader, build_runner: RunnerBuilder
) -> tuple[ModelRunner, MemoryPlan]:
    """Start the other ranks and build this one; all of them do the same (worker.py).

    Raises:
        EngineError: the model cannot be cut like this, or a rank has failed.
    """
    size = engine.num_ranks
    check_cut(model, engine.tensor_parallel_size)
    check_stages(model, engine.pipeline_parallel_size)
    TorchGroup.check_free()
    device = device_of(engine, 0)
    spec = {
        "engine": asdict(engine),
        "weights": description(load),
    }
    crew = Processes(size)
    hand = Hand(crew)
    try:
        crew.start(spec | {"meeting": str(crew.meeting)})
        crew.wait_until_ready()

        def build() -> tuple[Rank, MemoryPlan]:
            crew.group = join(engine, crew.meeting, 0, device)
            return build_rank(model, engine, load, crew.group, device, build_runner)

        rank, plan = hand.do(build)
    except BaseException:
        _end(crew, hand)
        raise
    return SharedRunner(rank, crew, hand), plan


def join(engine: EngineConfig, meeting: Path, number: int, device: torch.device) -> TorchGroup:
    """The group of all ranks, as number `number` of them."""
    sizes = (engine.tensor_parallel_size, engine.pipeline_parallel_size)
    return TorchGroup.join(meeting, number, *sizes, device)


def build_rank(
    model: Plamo2Config,
    engine: EngineConfig,
    load: Loader,
    group: TorchGroup,
    device: torch.device,
    build_runner: RunnerBuilder,
) -> tuple[Rank, MemoryPlan]:
    """What every rank builds: the engine of one process, for a model with fewer heads."""
    own = replace(engine, device=str(device))
    planned = widest(of_rank(model, group.rank, group.size), group.stages)

    def load_part(ops: Kernels, dtype: torch.dtype, device: torch.device) -> Plamo2Model:
        if reads_peers(engine, group, ops, device):
            from plamo_ref.parallel.fused import FusedSums

            pdl = engine.pdl and can_overlap(device)
            ops = FusedSums.of(model, group, ops, pdl=pdl)
        part = cut(load, group)(ops, dtype, device)
        if isinstance(part, StageModel):
            part.set_place(group.stage, group.stages, most_tokens(engine))
        return part

    runner, plan = build_runner(planned, own, load_part, group.least)
    return Rank(runner, group), plan


def reads_peers(engine: EngineConfig, group: Group, ops: Kernels, device: torch.device) -> bool:
    """Whether kernels add what the ranks have, as was asked for and where they can."""
    can = group.size > 1 and device.type == "cuda" and ops.name == "triton"
    return can and not engine.disable_custom_all_reduce


def most_tokens(engine: EngineConfig) -> int:
    """Of a step, with the padding of a recorded one."""
    return max(engine.step_tokens, DECODES[-1] + TOKENS[-1])


def cut(load: Loader, group: Group) -> Loader:
    """A loader for what one rank has."""
    match load:
        case StoredWeights():
            return partial(load_stored, load, group)
        case RandomWeights(config, seed):
            return partial(load_random, config, seed, group)
    raise _unreadable()


def description(load: Loader) -> dict[str, Any]:
    """A loader for another process, in JSON's values."""
    match load:
        case StoredWeights(checkpoint, scheme):
            return {"folder": str(checkpoint.folder), "quantization": scheme}
        case RandomWeights(config, seed):
            told = {"seed": seed, "quantization": config.quantization}
            return {"config": config.to_dict()} | told
    raise _unreadable()


def _unreadable() -> EngineError:
    return EngineError(
        "tensor_parallel_size, pipeline_parallel_size: other processes cannot read these weights, "
        "which only this one has (as bench ablation's); leave both out"
    )


def device_of(engine: EngineConfig, rank: int) -> torch.device:
    """The rank's GPU, or the CPU for all.

    Raises:
        EngineError: there are too few GPUs, or one of them was asked for by number.
    """
    device, size = engine.resolve_device(), engine.num_ranks
    if device.type != "cuda":
        return device
    if device.index is not None:
        raise EngineError(
            f"device={engine.device!r}: {size} ranks take the GPUs from 0 on; "
            "device='cuda' is enough, and CUDA_VISIBLE_DEVICES chooses among them"
        )
    count = torch.cuda.device_count()
    if size > count:
        raise EngineError(
            f"tensor_parallel_size={engine.tensor_parallel_size}, pipeline_parallel_size="
            f"{engine.pipeline_parallel_size}: that is {size} GPUs, and here are {count}; lower "
            "one of them, or take device='cpu'"
        )
    return torch.device("cuda", rank)
