"""Functions of the user's own between a model's logits and everything else.

Invariant: a row is given to its own processors, one after the other, and to nobody else's; what
comes back is logits that a token can be chosen by, or an error that names the processor.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from plamo_ref.errors import PlamoRefError

# The output's tokens so far and the logits [V] of the next one → its logits, which may be the same
# tensor, changed. A step that was interrupted asks again, so the answer follows from these two.
if TYPE_CHECKING:
    from torch import Tensor

    LogitsProcessor = Callable[[list[int], Tensor], Tensor]
else:  # types are read when messages are, also where there is no torch
    LogitsProcessor = Callable[[list[int], Any], Any]


class LogitsProcessorError(PlamoRefError, ValueError):
    """A processor returned something else than logits."""


def process(
    logits: "Tensor", processors: Sequence[LogitsProcessor], output_ids: Sequence[int]
) -> None:
    """Let all processors change a row [V] in place.

    Raises:
        LogitsProcessorError: one of them returned no such row, or one that leaves no choice.
    """
    from torch import Tensor

    for place, processor in enumerate(processors):
        name = f"logits_processors[{place}] ({getattr(processor, '__name__', repr(processor))})"
        given = processor(list(output_ids), logits)
        wanted = f"return the logits, a tensor of {len(logits):,} numbers"
        if not isinstance(given, Tensor):
            raise LogitsProcessorError(f"{name} returned a {type(given).__name__}: {wanted}")
        if given.shape != logits.shape or not given.is_floating_point():
            shape = f"{str(given.dtype).removeprefix('torch.')} {list(given.shape)}"
            raise LogitsProcessorError(f"{name} returned a tensor {shape}: {wanted}")
        best = given.max().item()
        if not math.isfinite(best):
            why = "forbids every token" if best == -math.inf else f"has logits that are {best}"
            raise LogitsProcessorError(f"{name} {why}: leave at least one, and all below infinity")
        logits.copy_(given)
