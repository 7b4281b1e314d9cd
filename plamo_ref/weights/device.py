"""Tensors of a checkpoint to a GPU: several threads, each through its own page-locked buffers.

    file pages ─copy─▶ page-locked buffer ─device's own copy engine─▶ device ─cast─▶ tensor

A device copies from page-locked memory by itself and at the full speed of its bus; from other
memory the driver would first copy it there, and the host would wait. Each thread has two buffers:
one is filled while the other one is on its way.

Invariant: the tensors, and the errors, are those of `Checkpoint.read`, one after the other in the
same order; at any moment only a few of them are on their way.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from threading import local

import torch
from torch import Tensor

BUFFER_BYTES = 32 << 20
Opener = Callable[[str], Tensor]  # a tensor's name → its pages in the file, mapped, not yet read


class DeviceCopier:
    """Two buffers of one thread, and the stream on which they are emptied."""

    def __init__(self, device: torch.device, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.device, on_gpu = device, device.type == "cuda"
        self.buffers = [
            torch.empty(buffer_bytes, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(2)
        ]
        self.stream = torch.cuda.Stream(device) if on_gpu else None
        self.emptied: list[torch.cuda.Event | None] = [None, None]

    def copy(self, source: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of `source` on the device, in `dtype`; complete when this returns."""
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
            # Within: memory that other streams still use must not come here.
            target = torch.empty(source.shape, dtype=dtype, device=self.device)
            flat, out = source.reshape(-1), target.view(-1)
            room = self.buffers[0].numel() // source.itemsize
            for number, start in enumerate(range(0, flat.numel(), room)):
                part = slice(start, min(start + room, flat.numel()))
                self._send(flat[part], out[part], number % 2)
        if self.stream is not None:
            self.stream.synchronize()
        return target

    def _send(self, source: Tensor, target: Tensor, place: int) -> None:
        emptied = self.emptied[place]
        if emptied is not None:
            emptied.synchronize()
        buffer = self.buffers[place].view(source.dtype)[: source.numel()]
        buffer.copy_(source)  # the file is read here
        # Cast where it arrives: there it costs nothing.
        target.copy_(buffer.to(self.device, non_blocking=True), non_blocking=True)
        if self.stream is not None:
            self.emptied[place] = self.stream.record_event()


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinities; computed where it is."""
    if not tensor.numel():
        return True
    low, high = tensor.aminmax()  # NaN wins in both; one pass, no temporaries of the tensor's size
    return bool(low.isfinite() & high.isfinite())


def read_ahead(
    names: Sequence[str],
    open_tensor: Opener,
    dtype: torch.dtype | None,
    device: torch.device,
    readers: int,
    buffer_bytes: int = BUFFER_BYTES,
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors on the device, in the order of `names`, with so many threads reading.

    A tensor that is not finite comes as well: who reads it knows how to say where.
    """
    own = local()

    def prepare() -> None:
        own.copier = DeviceCopier(device, buffer_bytes)

    def read(name: str) -> Tensor:
        source = open_tensor(name)
        copied: Tensor = own.copier.copy(source, dtype or source.dtype)
        return copied

    waiting = iter(names)
    with ThreadPoolExecutor(readers, "weights", initializer=prepare) as pool:
        coming: deque[tuple[str, Future[Tensor]]] = deque()
        try:
            while True:
                while len(coming) <= readers and (name := next(waiting, None)) is not None:
                    coming.append((name, pool.submit(read, name)))
                if not coming:
                    return
                name, future = coming.popleft()
                yield name, future.result()
        finally:
            for _, future in coming:
                future.cancel()
