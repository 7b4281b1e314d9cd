"""Long work beside the event loop: reading large bodies, cutting long texts into tokens, templates.

Invariant: what runs here is given all it needs and changes nothing that the event loop can see.

There are two threads and no more: of Python's threads one runs at a time, each for up to 5 ms, and
each further one would stand before the event loop in the line. What is long inside of a library,
and keeps the others out meanwhile, has to be bounded by whoever hands it over.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 2


class Workers:
    """The threads of one server."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "long-work")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`work(...)`, in a thread. Who is cancelled while waiting in the line leaves it."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))
