"""Triton kernels compiled in parallel, before anybody waits for them.

A kernel is compiled when it is first launched, one after the other, while the device idles. Here
the launches of a dry run, over tensors without content, are compiled by many threads at once: the
compiler leaves Python's lock for nearly all of its time. They go through `launch` as the real ones
do, so they lead to the same variants, and the real launches find them in Triton's own cache.

Invariant: nothing runs on the device and nothing is decided here: without this, or when a launch
was not foreseen, the same kernels are compiled one after the other.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch

MOST_THREADS = 32  # more do not find more to do


class Compilers(ThreadPoolExecutor):
    """Threads that compile, and on a GPU also make each kernel ready to be launched there."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        # "cuda" alone is whatever device is current, which every thread has to be told.
        here = torch.cuda.current_device() if self.on_gpu and device.index is None else device.index
        prepare = (lambda: torch.cuda.set_device(here)) if self.on_gpu else None
        super().__init__(min(MOST_THREADS, os.cpu_count() or 1), "compile", initializer=prepare)

    def submit(self, compile_one: Callable[..., Any], /, *_: Any, **__: Any) -> Future[Any]:
        def compiled() -> Any:
            kernel = compile_one()
            if self.on_gpu:
                _ = kernel.run  # loads it, and in older Tritons builds the C code of its launch
            return kernel

        return super().submit(compiled)


def compile_ahead(dry_run: Callable[[], object], device: torch.device) -> Future[None]:
    """Start to compile every launch of `dry_run`; the future is done when all are compiled.

    Args:
        dry_run: launches kernels on meta tensors.
        device: where the real launches will be.
    """
    conductor = ThreadPoolExecutor(1, "dry run")
    future = conductor.submit(_compile, dry_run, device)
    conductor.shutdown(wait=False)
    return future


def _compile(dry_run: Callable[[], object], device: torch.device) -> None:
    # Imported here: Triton exists for Linux only.
    from triton import AsyncCompileMode

    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with current, Compilers(device) as compilers, AsyncCompileMode(compilers):
        dry_run()
