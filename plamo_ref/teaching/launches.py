"""counting(): which launches of a reader's Triton kernels there were, with how many programs.

    with counting(copy_kernel) as seen:
        copy_kernel[(3,)](x, out, 10, BLOCK=4)
    seen[0].programs    # 3

Invariant: a launch is counted when it is made and not when it is written down; interpreted and
compiled kernels are counted alike, and the kernels are as they were when the block has ended.
Used by lessons 10 and 11.
"""

import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plamo_ref.errors import PlamoRefError
from plamo_ref.teaching.watching import require_interpreter


class LaunchError(PlamoRefError):
    """Something that cannot be counted, because it is no kernel."""


@dataclass(frozen=True)
class Launch:
    """One launch of one kernel."""

    kernel: str  # its name
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # by the kernel's parameters, those with a name only

    @property
    def programs(self) -> int:
        """How many copies of the kernel's function run."""
        return math.prod(self.grid)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The arguments that are tensors, by the kernel's parameters."""
        return {k: v for k, v in self.arguments.items() if isinstance(v, Tensor)}


Hook = Callable[[Launch], None]


def lane() -> torch.device:
    """Where a lesson's kernels run: compiled on a GPU if there is one, else in the interpreter.

    To be called before anything imports Triton, which decides when a kernel is defined. Somebody
    who has set TRITON_INTERPRET=1 gets the interpreter on a machine with a GPU as well.

    Raises:
        WatchError: Triton is not there at all; the message says what still works.
    """
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
        if os.environ.get("TRITON_INTERPRET") != "1":
            return torch.device("cuda")
    else:
        os.environ["TRITON_INTERPRET"] = "1"
    require_interpreter()
    return torch.device("cpu")


def is_interpreted(kernel: Any) -> bool:
    """Whether a kernel was defined for Triton's interpreter."""
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(kernel, InterpretedFunction)


@contextmanager
def counting(
    *kernels: Any, before: Hook | None = None, after: Hook | None = None
) -> Iterator[list[Launch]]:
    """Count launches of these kernels for as long as the block lasts.

    Args:
        kernels: what @triton.jit gave; helpers that kernels call are not launched, and not counted.
        before, after: called with each launch, just before and just after it was made.

    Raises:
        LaunchError: one of them is no kernel.
    """
    from triton.runtime.jit import KernelInterface

    seen: list[Launch] = []
    for kernel in kernels:
        if not isinstance(kernel, KernelInterface):
            name = getattr(kernel, "__name__", repr(kernel))
            raise LaunchError(f"{name} is no kernel: is @triton.jit missing above its def?")
    with ExitStack() as restored:
        for kernel in kernels:
            # `kernel[grid](…)` calls `kernel.run(…, grid=grid, warmup=False)`: of this object alone
            own = vars(kernel).get("run")
            restored.callback(setattr if own else delattr, kernel, "run", *([own] if own else []))
            kernel.run = _counted(kernel, seen, before, after)
        yield seen


def _counted(
    kernel: Any, seen: list[Launch], before: Hook | None, after: Hook | None
) -> Callable[..., Any]:
    run = kernel.run

    def counted(*args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if warmup:  # compiled, not launched
            return run(*args, grid=grid, warmup=warmup, **kwargs)
        given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        size = grid(given) if callable(grid) else grid
        launch = Launch(kernel.__name__, tuple(int(n) for n in size), given)
        if before is not None:
            before(launch)
        done = run(*args, grid=grid, warmup=warmup, **kwargs)
        seen.append(launch)
        if after is not None:
            after(launch)
        return done

    return counted
