"""How long a GPU works on a call: the reader's, or the package's.

Invariant: only what the GPU does is timed, if a call can be recorded: as a graph, which lesson 13
explains. The replay is timed with Triton's `do_bench`: it warms up, writes over the L2 cache before
each run, and gives the median. Launched from Python a small kernel would show how long its launch
takes, and the package's, which look up tables first, would look slow.
"""

from collections.abc import Callable
from typing import Any

import torch


def gpu_microseconds(call: Callable[[], Any]) -> float:
    """The median time of one call on the current GPU. A call that asks the GPU something on its
    way cannot be recorded, and is timed with its launches."""
    from triton.testing import do_bench

    for _ in range(3):  # compiled, and what is chosen once is chosen
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        return 1000 * float(do_bench(call, return_mode="median"))
    return 1000 * float(do_bench(graph.replay, return_mode="median"))
