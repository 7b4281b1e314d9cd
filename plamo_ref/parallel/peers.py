"""The memory of each rank that all ranks of a stage read and write (kernels/norm/triton_peers.py).

Between processes goes what opens a rank's memory, as numbers and bytes and never as objects: of a
GPU the words of CUDA's IPC, of a CPU the name of a file that all of them map.

Invariant: what is shared lives as long as its `Peers`; once `let_go` was called, no kernel waits
for another rank any more, and what any of them computes is worth nothing.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from plamo_ref.engine.config import EngineError
from plamo_ref.kernels.norm.triton_peers import MOST_ROWS, Memories, words

# Bytes of one rank → those of all, in their order; zeros may follow.
Exchange = Callable[[bytes], Sequence[bytes]]
FOR_EVER = 1 << 62  # turns
END = b"\x01"  # of what is told


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
        share = _over_ipc if device.type == "cuda" else _in_files
        self._all = share(exchange, words(size, rows, width), rank, device)
        self.memory = self._all[rank]
        here = self.memory.data_ptr()
        distances = [(each.data_ptr() - here) // 16 for each in self._all]
        where = torch.tensor(distances, dtype=torch.int64, device=device)
        self.memories = Memories(self.memory, where, rank, rows, width)
        flags = self.memory[: size * rows].view(size, rows)
        self._of_others = [flags[number] for number in range(size) if number != rank]

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


def _in_files(exchange: Exchange, count: int, rank: int, device: torch.device) -> list[Tensor]:
    """A file of zeros for each rank, which all of them map."""
    handle, mine = tempfile.mkstemp(prefix="plamo-ref-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.truncate(8 * count)
        names = [_untold(told).decode() for told in exchange(mine.encode() + END)]
        mapped = [
            torch.from_file(name, shared=True, size=count, dtype=torch.int64) for name in names
        ]
        exchange(END)  # nobody begins, or leaves, before all are here
    finally:
        Path(mine).unlink()  # what is mapped stays
    return mapped


def _over_ipc(exchange: Exchange, count: int, rank: int, device: torch.device) -> list[Tensor]:
    """Each rank's memory on its GPU, opened by the others."""
    memory = torch.zeros(count, dtype=torch.int64, device=device)
    torch.cuda.synchronize(device)  # the zeros are there before anybody writes
    _, arguments = reduce_tensor(memory)
    own = dict(signature(rebuild_cuda_tensor).bind(*arguments).arguments)
    # Kinds and sizes are alike everywhere: told are the numbers and bytes.
    plain = {name: word for name, word in own.items() if isinstance(word, int | bytes)}
    told = exchange(msgspec.msgpack.encode(plain) + END)
    opened = [
        memory if number == rank else _opened(_untold(each), own, device)
        for number, each in enumerate(told)
    ]
    exchange(END)  # nobody begins, or leaves, before all are here
    return opened


def _untold(told: bytes) -> bytes:
    return told.rstrip(b"\0").removesuffix(END)


def _opened(told: bytes, own: dict[str, Any], device: torch.device) -> Tensor:
    """Another rank's memory, for kernels on `device`, which need not be where it is: it is opened
    with `device` as the current one, so it is mapped there, over NVLink or PCIe."""
    theirs = msgspec.msgpack.Decoder(dict[str, int | bool | bytes]).decode(told)
    there = torch.device("cuda", int(theirs["storage_device"]))
    if there != device and not torch.cuda.can_device_access_peer(device, there):
        raise EngineError(
            f"disable_custom_all_reduce=False: {device} cannot reach the memory of {there}; "
            "leave it out"
        )
    # Its zeros are written already (see above), so there is no event to wait for either.
    how = {"storage_device": device.index, "event_sync_required": False}
    opened: Tensor = rebuild_cuda_tensor(**own | theirs | how)
    return opened
