"""watch(): which program of a Triton kernel touches which element, recorded by the interpreter.

    with watch(x=x, out=out) as seen:
        kernel[(3,)](x, out, 10, BLOCK=4)
    seen.programs("out", "store")    # [10] the program that stored each element, -1: none

Invariant: what is recorded is what the kernel did, not what a drawing of it says; an access outside
the watched tensors is refused before it happens. (Without this the interpreter reads and writes
whatever lies there, and a larger mistake ends the process.)
Used by lessons 10 and 11. It needs kernels that were defined with TRITON_INTERPRET=1.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from plamo_ref.errors import PlamoRefError
from plamo_ref.teaching.figures import BLACK, GREY, Style, figures, style_of

Kind = Literal["load", "store"]
Program = tuple[int, int, int]  # its place in the grid
Number = Callable[[Program], int]


class WatchError(PlamoRefError):
    """A kernel that touches what it was not given, or a lesson that cannot be watched here."""


@dataclass(frozen=True)
class Access:
    """One load or store of one program: the elements that its mask let through."""

    program: Program
    kind: Kind
    tensor: str  # "" when it is none of the watched ones
    elements: np.ndarray  # numbers of elements, counted from the tensor's first


@dataclass
class Seen:
    """Everything that the programs did, in order."""

    tensors: Mapping[str, Tensor]
    accesses: list[Access] = field(default_factory=list)

    def programs(self, tensor: str, kind: Kind, number: Number = itemgetter(0)) -> np.ndarray:
        """For each element the number of the last program that touched it, or -1."""
        last = np.full(self.tensors[tensor].numel(), -1)
        for access in self.of(tensor, kind):
            last[access.elements] = number(access.program)
        return last.reshape(tuple(self.tensors[tensor].shape))

    def counts(self, tensor: str, kind: Kind) -> np.ndarray:
        """How often each element was touched."""
        count = np.zeros(self.tensors[tensor].numel(), dtype=int)
        for access in self.of(tensor, kind):
            np.add.at(count, access.elements, 1)
        return count.reshape(tuple(self.tensors[tensor].shape))

    def moved_bytes(self, kind: Kind, *tensors: str) -> int:
        """Bytes loaded or stored, each as often as it was; of all watched tensors by default."""
        names = tensors or tuple(self.tensors)
        size = {name: self.tensors[name].element_size() for name in names}
        return sum(len(a.elements) * size[name] for name in names for a in self.of(name, kind))

    def only(self, program: tuple[int, ...]) -> "Seen":
        """What one program did."""
        whole = program + (0,) * (3 - len(program))
        return Seen(self.tensors, [a for a in self.accesses if a.program == whole])

    def of(self, tensor: str, kind: Kind) -> Iterator[Access]:
        """The accesses to one tensor."""
        return (a for a in self.accesses if (a.tensor, a.kind) == (tensor, kind))


def require_interpreter() -> None:
    """Raise unless kernels defined from now on will be run by Triton's interpreter.

    Raises:
        WatchError: with what does not work here and what still does.
    """
    if importlib.util.find_spec("triton") is None:
        raise WatchError(
            "Triton is not installed: it exists for Linux only. On this machine no cell that "
            "defines, launches or compiles a kernel can run. What still works: plain torch, the "
            "text, and every output as committed. To run all of it use Linux, WSL 2 or a container."
        )
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise WatchError(
            "TRITON_INTERPRET is not 1: kernels would be compiled for a GPU. Set it in os.environ "
            "in the first cell, before anything imports Triton, and restart the kernel"
        )


@contextmanager
def watch(*, others: bool = False, **tensors: Tensor) -> Iterator[Seen]:
    """Record loads and stores of interpreted kernels for as long as the block lasts.

    Args:
        others: let programs touch other tensors too (a launcher's own, which have no name here).
        tensors: contiguous, on the CPU; results are reported under these names.

    Raises:
        WatchError: an access outside of all tensors (unless `others`): which program, and where.
    """
    require_interpreter()
    from triton.runtime.interpreter import InterpreterError, interpreter_builder

    for name, tensor in tensors.items():
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise WatchError(f"watch: {name} must be contiguous and on the CPU")
    seen = Seen(tensors)
    plain = {"load": interpreter_builder.create_masked_load}
    plain["store"] = interpreter_builder.create_masked_store

    def load(pointers: Any, mask: Any, *rest: Any) -> Any:
        _record(seen, interpreter_builder.grid_idx, "load", pointers, mask, others)
        return plain["load"](pointers, mask, *rest)

    def store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        _record(seen, interpreter_builder.grid_idx, "store", pointers, mask, others)
        return plain["store"](pointers, value, mask, *rest)

    interpreter_builder.create_masked_load = load
    interpreter_builder.create_masked_store = store
    try:
        yield seen
    except InterpreterError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, WatchError):
            cause = cause.__cause__
        raise (cause or error) from None
    finally:
        del interpreter_builder.create_masked_load, interpreter_builder.create_masked_store


def _record(seen: Seen, program: Any, kind: Kind, pointers: Any, mask: Any, others: bool) -> None:
    allowed = np.broadcast_to(mask.data, pointers.data.shape)
    addresses = pointers.data[allowed].astype(np.int64)
    for name, tensor in seen.tensors.items():
        index, odd = np.divmod(addresses - tensor.data_ptr(), tensor.element_size())
        inside = (index >= 0) & (index < tensor.numel()) & (odd == 0)
        if inside.any():
            seen.accesses.append(Access(tuple(program), kind, name, index[inside]))
            addresses = addresses[~inside]
    if addresses.size and not others:
        raise WatchError(_outside(seen, program, kind, int(addresses[0])))
    if addresses.size:
        seen.accesses.append(Access(tuple(program), kind, "", addresses))


def _outside(seen: Seen, program: Any, kind: Kind, address: int) -> str:
    """Names the tensor that begins nearest below the address."""
    who = f"program ({', '.join(map(str, program))})"
    below = [(t.data_ptr(), n) for n, t in seen.tensors.items() if t.data_ptr() <= address]
    if not below:
        return f"{who}: a {kind} in front of all watched tensors: a negative offset?"
    start, name = max(below)
    tensor = seen.tensors[name]
    index = (address - start) // tensor.element_size()
    verb = "loads" if kind == "load" else "stores to"
    if index < 4 * tensor.numel() + 64:
        return (
            f"{who} {verb} element {index} of {name}, which has {tensor.numel()} "
            f"(0 to {tensor.numel() - 1}): is a mask missing?"
        )
    return f"{who} {verb} an address in none of {', '.join(seen.tensors)}"


def touch_map(
    seen: Seen,
    kind: Kind,
    *tensors: str,
    number: Number = itemgetter(0),
    label: Callable[[Program], str] | None = None,
) -> Figure:
    """Who touched what: a panel for each tensor, a row for each entry of its first dimension.

    Neighbouring elements of one program are one box; white elements were touched by nobody.

    Args:
        number: decides the colour; from a program's place in the grid (x, y, z).
        label: the text in the box; by default the number.
    """
    rows = {name: _boxes(seen, kind, name, number, label) for name in tensors}
    height = max(len(of_tensor) for of_tensor in rows.values())
    fig, panels = figures(min(9.5, 0.8 + 3.3 * len(tensors)), 0.8 + 0.36 * height, len(tensors))
    for ax, (name, of_tensor) in zip(panels, rows.items(), strict=True):
        length = seen.tensors[name].numel() // len(of_tensor)
        for y, boxes in enumerate(of_tensor):
            ax.add_patch(Rectangle((0, y - 0.4), length, 0.8, facecolor="white", edgecolor=GREY))
            for start, end, text, style in boxes:
                _draw_box(ax, start, end, y, text, style)
        ax.set(xlim=(-0.03 * length, 1.03 * length), ylim=(len(of_tensor) - 0.5, -0.5), title=name)
        ax.set(xticks=[], yticks=range(len(of_tensor)) if len(of_tensor) > 1 else [])
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    return fig


def _draw_box(ax: Axes, start: int, end: int, y: int, text: str, style: Style) -> None:
    look: dict[str, Any] = {"facecolor": style.colour, "hatch": style.hatch, "edgecolor": BLACK}
    ax.add_patch(Rectangle((start, y - 0.4), end - start, 0.8, linewidth=0.8, **look))
    plate = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
    ax.text((start + end) / 2, y, text, ha="center", va="center", fontsize=11, bbox=plate)


def _boxes(
    seen: Seen, kind: Kind, name: str, number: Number, label: Callable[[Program], str] | None
) -> list[list[tuple[int, int, str, Style]]]:
    """For each row its boxes: first element, end, text and style."""
    tensor = seen.tensors[name]
    last: list[Program | None] = [None] * tensor.numel()
    for access in seen.of(name, kind):
        for element in access.elements.tolist():
            last[element] = access.program
    length = tensor.numel() // (1 if tensor.dim() == 1 else tensor.shape[0])
    rows = []
    for begin in range(0, tensor.numel(), length):
        boxes, place = [], 0
        for program, run in groupby(last[begin : begin + length]):
            end = place + len(list(run))
            if program is not None:
                text = label(program) if label else str(number(program))
                boxes.append((place, end, text, style_of(number(program))))
            place = end
        rows.append(boxes)
    return rows
