"""The ranks of an engine as a group: what they do together.

Invariant: every rank does the same things in the same order; each of them changes a tensor in the
same way on all ranks, and nothing else of torch.distributed is used.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from plamo_ref.engine.config import EngineError

if TYPE_CHECKING:
    from plamo_ref.parallel.peers import Peers

# The longest that a rank waits for another one, which may be compiling kernels. A rank that has
# died is noticed at once: see crew.py.
PATIENCE = timedelta(minutes=10)
LEAVE_SECONDS = 10.0  # for a group to be left, whatever its other ranks do


class LostError(RuntimeError):
    """What the ranks do together could not be done: another one is to blame."""


class Group(Protocol):
    """What ranks do together: those of a stage, if nothing else is said. The first rank of the last
    stage is the driver."""

    rank: int  # among those who share the heads of a stage
    size: int
    stage: int
    stages: int
    peers: "Peers | None"  # memory that all ranks of a stage can read; sums are their readers' then

    def add(self, x: Tensor) -> Tensor:
        """The sum of everybody's `x`, on every rank; in its place."""
        ...

    def most(self, x: Tensor) -> Tensor:
        """The largest of everybody's `x`, element by element, on every rank; in its place."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """Everybody's `x`, in the order of the ranks: [size, *x.shape], on every rank."""
        ...

    def tell(self, vector: Tensor) -> None:
        """Write the driver's `vector` over everybody's, in all stages."""
        ...

    def least(self, number: int) -> int:
        """The least of everybody's numbers, in all stages."""
        ...

    def pass_on(self, x: Tensor) -> None:
        """Give `x` to the same rank of the next stage."""
        ...

    def take(self, x: Tensor) -> Tensor:
        """Write over `x` what the same rank of the stage before passes on."""
        ...


class TorchGroup:
    """The group of processes that joined it: NCCL between GPUs, gloo between CPUs."""

    def __init__(self, number: int, size: int, stages: int, device: torch.device) -> None:
        """`number`: among all ranks."""
        self.rank, self.size, self.stages = number % size, size, stages
        self.stage = stages - 1 - number // size
        self._number, self._device = number, device
        self.peers: Peers | None = None
        self._own = dist.group.WORLD
        if stages > 1:  # everybody takes part in making each of them
            firsts = range(0, size * stages, size)
            of_stages = [dist.new_group(list(range(first, first + size))) for first in firsts]
            self._own = of_stages[number // size]

    @staticmethod
    def check_free() -> None:
        """Raises EngineError: this process is in a group already."""
        if dist.is_initialized():
            raise EngineError(
                "tensor_parallel_size, pipeline_parallel_size: this process uses torch.distributed "
                "already, and it has one group at a time; close the other LLM first"
            )

    @classmethod
    def join(
        cls, meeting: Path, number: int, size: int, stages: int, device: torch.device
    ) -> "TorchGroup":
        """Wait for all ranks. `meeting` is a file that is not there yet."""
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=dist.FileStore(str(meeting), size * stages),
            rank=number,
            world_size=size * stages,
            timeout=PATIENCE,
            device_id=device if on_gpu else None,
        )
        return cls(number, size, stages, device)

    def leave(self) -> None:
        """Be in no group any more; the file `meeting` must still be there."""
        groups, self._own = {self._own, dist.group.WORLD}, None
        left = threading.Event()
        keep = self._device.type == "cuda"
        threading.Thread(target=_leave, args=(groups, left, keep), daemon=True).start()
        left.wait(LEAVE_SECONDS)

    def break_up(self) -> None:
        """Let nobody here wait for a rank that is gone: what is under way ends with an error."""
        if self.peers is not None:
            self.peers.let_go()
        for group in {self._own, dist.group.WORLD}:
            with suppress(RuntimeError):  # where it cannot be, connections break by themselves
                if group is not None and dist.is_initialized():
                    group.abort()

    def add(self, x: Tensor) -> Tensor:
        if self.size > 1:
            with _together():
                dist.all_reduce(x, group=self._own)
        return x

    def most(self, x: Tensor) -> Tensor:
        if self.size > 1:
            with _together():
                dist.all_reduce(x, op=dist.ReduceOp.MAX, group=self._own)
        return x

    def gather(self, x: Tensor) -> Tensor:
        found = x.new_empty((self.size * x.shape[0], *x.shape[1:]))
        # The second is the first one's name in older versions.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        with _together():
            gather(found, x.contiguous(), group=self._own)
        return found.unflatten(0, (self.size, -1))

    def meet(self, width: int) -> "Peers":
        """Open the memory of each rank of a stage to all of them, for sums of so wide rows."""
        from plamo_ref.parallel.peers import Peers

        self.peers = Peers(self._exchange, self.rank, self.size, width, self._device)
        return self.peers

    def _exchange(self, mine: bytes) -> list[bytes]:
        """Everybody's bytes, padded to the longest."""
        longest = self.most(torch.tensor([len(mine)], device=self._device))
        padded = torch.zeros(1, int(longest), dtype=torch.uint8, device=self._device)
        padded[0, : len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        return [bytes(row.tolist()) for row in self.gather(padded)[:, 0]]

    def tell(self, vector: Tensor) -> None:
        with _together():
            dist.broadcast(vector, src=0)

    def least(self, number: int) -> int:
        found = torch.tensor(number, device=self._device)
        with _together():
            dist.all_reduce(found, op=dist.ReduceOp.MIN)
        return int(found)

    def pass_on(self, x: Tensor) -> None:
        with _together():
            dist.send(x, dst=self._number - self.size)

    def take(self, x: Tensor) -> Tensor:
        with _together():
            dist.recv(x, src=self._number + self.size)
        return x


def added(group: Group, parts: Tensor) -> Tensor:
    """Partial sums of all ranks, [parts, T, out] on each, as one part [1, T, out]. Several parts of
    a rank, which are wider, are added first and stay wide: their sum over the ranks is rounded
    once, by its reader."""
    return group.add(parts[0] if len(parts) == 1 else parts.sum(0))[None]


def _leave(groups: set[Any], left: threading.Event, keep: bool) -> None:
    """Leave all groups, and keep the objects to the end of the process if need be: PyTorch 2.11
    stops for good in the destructor of an NCCL group (seen on two H200). Their communicators, which
    are what takes room on the devices, are gone by then."""
    try:
        if dist.is_initialized():
            dist.destroy_process_group()
    finally:
        left.set()  # nobody waits for what has failed
    if keep:
        threading.Event().wait()
    del groups


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostError(f"{type(error).__name__}: {error}") from error
