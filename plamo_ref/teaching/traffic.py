"""traffic(): the operations that a function written in plain torch is made of, and their bytes.

Invariant: every operation that makes or changes a tensor is counted, as a kernel of its own that
reads its inputs from memory and writes its result there, which is what eager torch does on a GPU.
Views move nothing and are left out.
Used by lessons 10 and 11.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Operation:
    """One pass over memory."""

    name: str
    read: int  # bytes
    written: int

    @property
    def moved(self) -> int:
        return self.read + self.written


def traffic(function: Callable[..., Any], *args: Any) -> list[Operation]:
    """Call `function` and list its operations in order. What it changes in place is changed."""
    mode = _Recorder()
    with mode:
        function(*args)
    return mode.operations


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        inputs = list(_tensors([args, kwargs]))
        if name == "__setitem__":  # the rows that are written; the rest stays
            place, value = args[1], args[2]
            size = value.nbytes if isinstance(value, Tensor) else 0
            self.operations.append(Operation("write rows", size + _bytes([place]), size))
        elif isinstance(out, Tensor) and name == "__getitem__" and not _is_view(out, inputs):
            size = out.nbytes  # the rows that are taken, not all that there are
            self.operations.append(Operation("gather rows", size + _bytes(args[1:]), size))
        elif isinstance(out, Tensor) and (_in_place(name) or not _is_view(out, inputs)):
            self.operations.append(Operation(name.strip("_"), _bytes(inputs), out.nbytes))
        return out


def _in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _is_view(out: Tensor, inputs: list[Tensor]) -> bool:
    storage = out.untyped_storage().data_ptr()
    return any(storage == t.untyped_storage().data_ptr() for t in inputs)


def _bytes(values: Any) -> int:
    """Of the elements that are really there: an expanded dimension is read from the cache."""
    return sum(_elements(t) * t.element_size() for t in _tensors(values))


def _elements(t: Tensor) -> int:
    sizes = (n for n, stride in zip(t.shape, t.stride(), strict=True) if stride or n == 1)
    return int(torch.Size(sizes).numel()) if t.numel() else 0


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
