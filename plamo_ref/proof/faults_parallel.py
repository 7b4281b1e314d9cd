"""Faults between ranks: what is cut wrongly, not added, or not told.

Invariant: one process has none of them; on four ranks, or on two stages of two ranks (ranks.py),
the law finds each.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from plamo_ref.linear import Linear
from plamo_ref.model import Mamba, Plamo2Model
from plamo_ref.parallel import cut, pipeline
from plamo_ref.parallel.cut import HEADS, Rule
from plamo_ref.parallel.model import AddedLinear
from plamo_ref.parallel.rank import CopyPlaces, Rank
from plamo_ref.proof.planting import Fault, patch
from plamo_ref.proof.ranks import ThreadGroup


def _not_added(healthy: Any, linear: AddedLinear, x: Tensor) -> Tensor:
    return Linear.parts(linear, x)


def _bcdt_not_added(healthy: Any, mamba: Mamba, *step: Any) -> Tensor:
    own = Linear(mamba.bcdt_proj.weight, mamba.bcdt_proj.ops)
    parts: Tensor = healthy(replace(mamba, bcdt_proj=own), *step)
    return parts


def _contiguous(healthy: Any, name: str) -> Rule:
    rule: Rule = healthy(name)
    return Rule(0, (HEADS, HEADS)) if "in_proj" in name else rule


def _round_robin(healthy: Any, count: int, rank: int, size: int) -> range:
    """The copy that the rank's number suggests, not the one that its queries look at."""
    own: range = healthy(count, rank, size)
    return range(rank % count, rank % count + 1) if count < size else own


def _stale(healthy: Any, group: ThreadGroup, vector: Tensor) -> None:
    healthy(group, vector)
    told, group.last = vector.clone(), group.last
    if group.rank == group.size - 1 and group.last is not None and group.last.shape == told.shape:
        vector.copy_(group.last)
    group.last = told


def _late(healthy: Any, group: ThreadGroup, x: Tensor) -> Tensor:
    now: Tensor = healthy(group, x).clone()
    if group.last_taken is not None and group.last_taken.shape == x.shape:
        x.copy_(group.last_taken)
    group.last_taken = now
    return x


def _normed(healthy: Any, model: Plamo2Model, *step: Any) -> tuple[Tensor, Tensor]:
    _, x = healthy(model, *step)
    return x, x


def _nobody_rests(healthy: Any, requests: Any, value: bool) -> None:
    pass


def _no_tokens(healthy: Any, *step: Any) -> None:
    pass


def _backwards(healthy: Any, group: ThreadGroup, x: Tensor) -> Tensor:
    found: Tensor = healthy(group, x).flip(0)
    return found


def _copies_nothing(healthy: Any, rank: Rank, order: CopyPlaces) -> None:
    if rank.group.rank == 0:
        healthy(rank, order)


PARALLEL_FAULTS = (
    Fault(
        "partial sums not added",
        "A rank takes its own part of a product for the whole.",
        "law",
        patch(AddedLinear, "parts", _not_added),
    ),
    Fault(
        "bcdt not added before its norms",
        "Each rank normalises B, C and dt of its own heads' channels.",
        "law",
        patch(Mamba, "__call__", _bcdt_not_added),
    ),
    Fault(
        "z and x cut across heads",
        "in_proj is cut as [all z | all x], but its rows are z and x of head after head.",
        "law",
        patch(cut, "rule_of", _contiguous),
    ),
    Fault(
        "the wrong KV head copied",
        "Ranks take turns with the KV heads, but their queries come in order.",
        "law",
        patch(cut, "share", _round_robin),
    ),
    Fault(
        "a vector of yesterday",
        "One rank computes the last step's vector once more.",
        "law",
        patch(ThreadGroup, "tell", _stale),
    ),
    Fault(
        "a stream of yesterday",
        "A stage goes on with what the stage before had passed on for the last step.",
        "law",
        patch(ThreadGroup, "take", _late),
    ),
    Fault(
        "a request in two stages",
        "A prompt's next chunk, or the next token, is computed before the last one is known.",
        "law",
        patch(pipeline, "_set_under_way", _nobody_rests),
    ),
    Fault(
        "stages do not hear what was chosen",
        "A step that was laid out before its last tokens were chosen goes without them.",
        "law",
        patch(pipeline, "fill_in", _no_tokens),
    ),
    Fault(
        "a stage passes on its norm",
        "The next stage adds to the normalised stream.",
        "law",
        patch(Plamo2Model, "through_layers", _normed),
    ),
    Fault(
        "logits gathered backwards",
        "The shares of the vocabulary are put together in another order.",
        "law",
        patch(ThreadGroup, "gather", _backwards),
    ),
    Fault(
        "places copied by the driver alone",
        "The other ranks are not told to copy a state that two requests begin with.",
        "law",
        patch(Rank, "copy", _copies_nothing),
    ),
)
