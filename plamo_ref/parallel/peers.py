"""The memory of each rank that all ranks of a stage read and write (kernels/norm/triton_peers.py).

Between processes goes what torch.multiprocessing sends for a shared tensor: a handle (of CUDA's
IPC, or of a shared file), which the ranks of one engine take from each other and nobody else.

Invariant: what is shared lives as long as its `Peers`; once `let_go` was called, no kernel waits
for another rank any more, and what any of them computes is worth nothing.
"""

from collections.abc import Callable, Sequence
from inspect import signature
from multiprocessing.reduction import ForkingPickler

import torch
import torch.multiprocessing  # teaches the pickler how tensors are shared
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, rebuild_tensor, reduce_tensor

from plamo_ref.engine.config import EngineError
from plamo_ref.kernels.norm.triton_peers import MOST_ROWS, Memories, words

# Bytes of one rank → those of all, in their order; zeros may follow.
Exchange = Callable[[bytes], Sequence[bytes]]
FOR_EVER = 1 << 62  # turns


class Peers:
    """One rank's memory, and those of the others."""

    def __init__(
        self, exchange: Exchange, rank: int, size: int, width: int, device: torch.device
    ) -> None:
        """Every rank of the stage comes here at the same time; their devices are alike.

        Args:
            width: of the widest row that is summed.

        Raises:
            EngineError: two of the devices cannot reach each other's memory.
        """
        rows = most_rows(device)
        self.memory = torch.zeros(words(size, rows, width), dtype=torch.int64, device=device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # the zeros are there before anybody writes
        told = exchange(_shared(self.memory))
        self._all = [
            self.memory if number == rank else _opened(each, device)
            for number, each in enumerate(told)
        ]
        here = self.memory.data_ptr()
        distances = [(each.data_ptr() - here) // 16 for each in self._all]
        where = torch.tensor(distances, dtype=torch.int64, device=device)
        self.memories = Memories(self.memory, where, rank, rows, width)
        flags = self.memory[: size * rows].view(size, rows)
        self._of_others = [flags[number] for number in range(size) if number != rank]
        exchange(b"here")  # nobody begins, or leaves, before all are

    def let_go(self) -> None:
        """Another rank is gone: let nobody here wait for it, now or later."""
        if self.memory.is_cuda:
            with torch.cuda.stream(torch.cuda.Stream(self.memory.device)):
                self._release()
        else:
            self._release()

    def _release(self) -> None:
        """In the names of all others, who cannot take it back: they write a maximum. A rank goes
        on counting its own turns."""
        for flags in self._of_others:
            flags.fill_(FOR_EVER)


def most_rows(device: torch.device) -> int:
    """Rows that programs can wait for at once: a multiprocessor holds two of them."""
    if device.type != "cuda":
        return MOST_ROWS
    return min(MOST_ROWS, 2 * torch.cuda.get_device_properties(device).multi_processor_count)


def _shared(memory: Tensor) -> bytes:
    """What another process needs to open it."""
    _, arguments = reduce_tensor(memory)
    return bytes(ForkingPickler.dumps(arguments))


def _opened(told: bytes, device: torch.device) -> Tensor:
    """Another rank's memory, for kernels on `device`, which need not be where it is: it is opened
    with `device` as the current one, so it is mapped there, over NVLink or PCIe."""
    arguments = ForkingPickler.loads(told)
    opened: Tensor
    if device.type != "cuda":
        opened = rebuild_tensor(*arguments)
        return opened
    named = signature(rebuild_cuda_tensor).bind(*arguments).arguments
    there = torch.device("cuda", named["storage_device"])
    if there != device and not torch.cuda.can_device_access_peer(device, there):
        raise EngineError(
            f"disable_custom_all_reduce=False: {device} cannot reach the memory of {there}; "
            "leave it out"
        )
    # Its zeros are written already (see above), so there is no event to wait for either.
    opened = rebuild_cuda_tensor(
        **named | {"storage_device": device.index, "event_sync_required": False}
    )
    return opened
