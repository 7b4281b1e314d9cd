"""Ranks as threads of one process, so that the law can watch all of them.

Invariant: each rank is the real one, with weights, caches and a group of its own; only the way from
one to the other is short: orders go through queues, and sums through a meeting of threads.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from plamo_ref.batch import LayerCache
from plamo_ref.config import LayerKind, Plamo2Config
from plamo_ref.engine.core import EngineCore
from plamo_ref.engine.memory.planner import MemoryPlan
from plamo_ref.engine.runner import ModelRunner
from plamo_ref.kernels.choice import TORCH
from plamo_ref.parallel.cut import check_cut
from plamo_ref.parallel.driver import SharedRunner
from plamo_ref.parallel.group import LostError
from plamo_ref.parallel.hand import Hand
from plamo_ref.parallel.model import assemble, own_part
from plamo_ref.parallel.pipeline import PipelinedCore
from plamo_ref.parallel.rank import Order, Rank
from plamo_ref.parallel.stage import StageModel

if TYPE_CHECKING:
    from plamo_ref.parallel.peers import Peers

MEETING_SECONDS = 20.0  # that a rank waits for the others
MOST_TOKENS = 1280  # of a step, with all the padding that a recorded one can have


class Meeting:
    """Where the threads wait for each other and leave what they have."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=MEETING_SECONDS)
        self._brought: list[Tensor | None] = [None] * size
        self.others: list[Meeting] = []  # of the stages

    def exchange(self, rank: int, x: Tensor) -> list[Tensor]:
        """Everybody's `x`, copied; as it is when the last one comes.

        Raises:
            LostError: somebody does not come.
        """
        try:
            self._brought[rank] = x
            self._barrier.wait()
            found = [each.clone() for each in self._brought if each is not None]
            self._barrier.wait()
        except threading.BrokenBarrierError:
            raise LostError("a rank did not come to a meeting") from None
        return found

    def cancel(self) -> None:
        """Nobody shall wait any more."""
        for meeting in (self, *self.others):
            meeting._barrier.abort()


class ThreadGroup:
    """`plamo_ref.parallel.group.Group` of one of the threads."""

    stage, stages = 0, 1
    peers: "Peers | None" = None

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self._meeting, self.rank, self.size = meeting, rank, meeting.size
        self._everybody, self._number = meeting, rank
        self._before = self._behind = SimpleQueue[Tensor]()
        # What was told and taken last, for faults.
        self.last: Tensor | None = None
        self.last_taken: Tensor | None = None

    def add(self, x: Tensor) -> Tensor:
        return x.copy_(torch.stack(self._meeting.exchange(self.rank, x)).sum(0))

    def most(self, x: Tensor) -> Tensor:
        return x.copy_(torch.stack(self._meeting.exchange(self.rank, x)).amax(0))

    def gather(self, x: Tensor) -> Tensor:
        return torch.stack(self._meeting.exchange(self.rank, x))

    def tell(self, vector: Tensor) -> None:
        vector.copy_(self._everybody.exchange(self._number, vector)[0])

    def least(self, number: int) -> int:
        numbers = self._everybody.exchange(self._number, torch.tensor(number))
        return min(int(each) for each in numbers)

    def pass_on(self, x: Tensor) -> None:
        self._behind.put(x.clone())

    def take(self, x: Tensor) -> Tensor:
        try:
            return x.copy_(self._before.get(timeout=MEETING_SECONDS))
        except Empty:
            raise LostError("the stage before passes nothing on") from None

    @classmethod
    def of_pipeline(cls, size: int, stages: int) -> "tuple[Meeting, list[ThreadGroup]]":
        """All of them, in order of their numbers, and where they meet."""
        everybody, found = Meeting(size * stages), list[ThreadGroup]()
        ways = [[SimpleQueue[Tensor]() for _ in range(size)] for _ in range(stages + 1)]
        for stage in reversed(range(stages)):
            meeting = Meeting(size)
            everybody.others.append(meeting)
            for rank in range(size):
                group = cls(meeting, rank)
                group.stage, group.stages = stage, stages
                group._everybody, group._number = everybody, len(found)
                group._before, group._behind = ways[stage][rank], ways[stage + 1][rank]
                found.append(group)
        return everybody, found


class Threads:
    """The ranks but the driver's: `driver.Others`, and `hand.Watch`."""

    def __init__(self, meeting: Meeting, ranks: Mapping[int, Rank]) -> None:
        self._meeting, self._failed = meeting, threading.Event()
        self.failure: str | None = None
        self._orders: dict[int, SimpleQueue[Order | None]] = {n: SimpleQueue() for n in ranks}
        self._threads = [
            threading.Thread(target=self._obey, args=each, daemon=True) for each in ranks.items()
        ]
        for thread in self._threads:
            thread.start()

    def _obey(self, number: int, rank: Rank) -> None:
        try:
            while (order := self._orders[number].get()) is not None:
                rank.obey(order)
        except Exception as error:
            self.fail(number, f"{type(error).__name__}: {error}", lost=isinstance(error, LostError))

    def send(self, order: Order) -> None:
        for orders in self._orders.values():
            orders.put(order)

    def close(self) -> None:
        for orders in self._orders.values():
            orders.put(None)
        for thread in self._threads:
            thread.join(MEETING_SECONDS)

    def fail(self, rank: int, why: str, *, lost: bool = False) -> None:
        if self.failure is None or not (lost or self._failed.is_set()):
            self.failure = f"rank {rank}: {why}"
        if not lost:
            self._failed.set()
        self._meeting.cancel()

    def wait(self, seconds: float) -> None:
        self._failed.wait(seconds)


class LabRunner(SharedRunner):
    """A driver whose other ranks can be looked at: `ranks` are all runners."""

    ranks: tuple[ModelRunner, ...]


def is_under_way(core: EngineCore) -> bool:
    """Whether some stage of a pipeline has yet to read what was given to a step."""
    return isinstance(core, PipelinedCore) and core.is_under_way


def caches_of(core: EngineCore) -> Iterator[tuple[LayerKind, LayerCache]]:
    """The kind and the cache of each layer, on all ranks; none where a step is under way."""
    runner = core.runner
    if is_under_way(core):
        return
    for each in runner.ranks if isinstance(runner, LabRunner) else (runner,):
        yield from zip(each.model.config.layer_kinds, each.caches, strict=True)


def threaded_runner(
    config: Plamo2Config,
    tensors: Mapping[str, Tensor],
    plan: MemoryPlan,
    size: int,
    stages: int = 1,
) -> LabRunner:
    """A model that `size` threads a stage share; every one has caches by `plan`.

    Args:
        config, tensors: of the whole model.
    """
    check_cut(config, size)
    meeting, groups = ThreadGroup.of_pipeline(size, stages)
    ranks = []
    for group in groups:
        read = _reader(config, tensors, group)
        model = assemble(config, read, group, TORCH)
        if isinstance(model, StageModel):
            model.set_place(group.stage, stages, MOST_TOKENS)
        ranks.append(Rank(ModelRunner(model, plan, model.embedding.dtype), group))
    threads = Threads(meeting, dict(enumerate(ranks[1:], 1)))
    runner = LabRunner(ranks[0], threads, Hand(threads))
    runner.ranks = tuple(rank.runner for rank in ranks)
    return runner


def _reader(
    config: Plamo2Config, tensors: Mapping[str, Tensor], group: ThreadGroup
) -> Callable[[str], Tensor]:
    return lambda name: own_part(config, name, group, tensors[name].__getitem__)
