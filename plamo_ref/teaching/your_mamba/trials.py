"""Trials of lesson 11's launchers: what each did, told as plain data.

Invariant: equal stories are equal behaviour. Outputs begin as NaN; around every tensor lies a guard
that nobody may touch; in the interpreter every access is watched, and products obey a GPU's rules.
Used by lesson 11.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plamo_ref.teaching.checks import CheckFailed
from plamo_ref.teaching.dot_rules import on_a_gpu
from plamo_ref.teaching.launches import count_launches
from plamo_ref.teaching.watching import Seen, watch
from plamo_ref.teaching.your_mamba import inputs, slow
from plamo_ref.teaching.your_mamba.inputs import Tensors

Story = dict[str, Any]
Launcher = Callable[..., Any]
GUARD = 64  # numbers in front of every tensor and behind it
GUARDED = "numbers beside the tensors"
LOADS, STORES, PROGRAMS = "loads of a number", "stores of a number", "programs"


@dataclass(frozen=True)
class Exercise:
    """What a launcher is called with, and what it has to leave behind."""

    cases: Callable[[], list[Tensors]]
    formula: Callable[..., Tensors]
    arguments: str  # in the order of the launcher's parameters
    new: tuple[str, ...]  # those of them that begin as NaN
    like: str  # whose shape they have
    once: str = ""  # of this tensor every number is loaded once and stored once
    programs: int = 0  # that touch it
    options: tuple[tuple[str, int], ...] = ()


LAYER = "u z dt B C A D bias cache slots"
EXERCISES = {
    "decay": Exercise(
        inputs.decay, slow.decay, "dt bias A delta fade", ("delta", "fade"), like="dt"
    ),
    "conv_step": Exercise(
        inputs.conv, slow.conv, "u weight memory slots out", ("out",), "u", options=(("BLOCK", 4),)
    ),
    "head_step": Exercise(
        inputs.head, slow.head, "state u B C delta fade y", ("y",), "u", "state", 1
    ),
    "slots_step": Exercise(
        inputs.slots, slow.slots, "u B C delta fade cache slots y", ("y",), "u", "cache", 6
    ),
    "update": Exercise(
        inputs.update, slow.update, f"{LAYER} y", ("y",), "u", "cache", 24, (("BLOCK_P", 4),)
    ),
    "walk": Exercise(inputs.walk, slow.walk, "u B C delta fade state y", ("y",), "u", "state", 2),
    "chunk": Exercise(inputs.chunk, slow.chunk, "u delta A B C state y", ("y",), "u", "state", 1),
    "scan": Exercise(
        inputs.scan, slow.scan, f"{LAYER} starts has_past y", ("y",), "u", "cache", 4, (("Q", 16),)
    ),
}


def interpreted() -> bool:
    """Whether kernels that are defined now are run by Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def truth(name: str, slip: str = "", moved: Story | None = None) -> list[Story]:
    """What the formula says, or what a slip in it leads to: a story for each case.

    Behind them stands how often numbers are moved; with a slip it does not, since how wrong numbers
    were moved says nothing more.

    Args:
        moved: where that is not as it should be.
    """
    exercise = EXERCISES[name]
    told = [_told(exercise.formula(case, slip=slip)) for case in exercise.cases()]
    return told if slip else [*told, _expected(exercise) | (moved or {})]


def story(name: str, launcher: Launcher) -> list[Story]:
    """What the reader's launcher does: as `truth` tells it.

    Raises:
        CheckFailed: no kernel made the outputs, a kernel stopped, or only three digits are right.
    """
    exercise = EXERCISES[name]
    done = [_tried(name, exercise, launcher, case) for case in exercise.cases()]
    told, right = [story for story, _ in done], truth(name)
    errors = [_error(mine, theirs) for mine, theirs in zip(told, right, strict=False)]
    if name in ("chunk", "scan") and 2e-5 < max(errors) < 3e-3:
        raise CheckFailed(
            f"✗ {name}: three digits are right. tl.dot makes tf32 of float32 operands, unless "
            'it is asked for more: input_precision="tf32x3"'
        )
    # Of several cases the last one's, which are those of all.
    return [*told, done[-1][1]] if max(errors) < 2e-5 else told


def tensors(name: str) -> tuple[Tensor, ...]:
    """What the launcher is called with in the first case: float32, outputs NaN."""
    exercise = EXERCISES[name]
    case = exercise.cases()[0]
    given = case | {new: torch.full_like(case[exercise.like], torch.nan) for new in exercise.new}
    return tuple(
        _guarded(given[key])[GUARD:-GUARD].view(given[key].shape)
        for key in exercise.arguments.split()
    )


def _tried(name: str, exercise: Exercise, launcher: Launcher, case: Tensors) -> tuple[Story, Story]:
    """The numbers that it made, and how often others were moved."""
    given = case | {new: torch.full_like(case[exercise.like], torch.nan) for new in exercise.new}
    whole = {key: _guarded(given[key]) for key in exercise.arguments.split()}
    tensors = {key: w[GUARD:-GUARD].view(given[key].shape) for key, w in whole.items()}
    before = {key: tensors[key].cpu().clone() for key in exercise.formula(case)}
    with ExitStack() as stack:
        launches = stack.enter_context(count_launches())
        seen = None
        if interpreted():
            stack.enter_context(np.errstate(all="ignore"))  # a GPU does not warn either
            stack.enter_context(on_a_gpu())
            seen = stack.enter_context(watch(**tensors))
        try:
            launcher(*tensors.values(), **dict(exercise.options))
        except Exception as error:
            if type(root := _root(error)) is type(error):
                raise
            problem = f"✗ {name}: in the kernel: {type(root).__name__}: {root}"
            raise CheckFailed(problem) from None
    changed = {key: tensors[key].cpu() for key in before}
    outputs = " and ".join(exercise.new)
    if all(changed[key].isnan().all() for key in exercise.new):
        raise CheckFailed(f"✗ {name}: nothing is in {outputs}: does the kernel end with tl.store?")
    if not launches.total or (seen and _otherwise_made(seen, before, changed)):
        raise CheckFailed(f"✗ {name}: no kernel stored {outputs}: write one, and launch it")
    told = _told(changed)
    if any((w[:GUARD] != 0).any() or (w[-GUARD:] != 0).any() for w in whole.values()):
        told[GUARDED] = "overwritten"
    return told, _seen(exercise, seen) if seen else {}


def _guarded(x: Tensor) -> Tensor:
    """The numbers of x in float32 (integers as they are), with zeros in front and behind."""
    kind = torch.float32 if x.is_floating_point() else x.dtype
    edge = torch.zeros(GUARD, dtype=kind)
    whole = torch.cat((edge, x.to(kind).flatten(), edge))
    return whole if interpreted() else whole.cuda()


def _told(changed: Tensors) -> Story:
    told: Story = {GUARDED: "as they were"}
    for name, x in changed.items():
        # NaN equals nothing, not even the NaN that a known slip leads to.
        told[f"{name}: NaN, or never stored"] = int(x.isnan().sum())
        told[name] = x.float().nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    return told


def _expected(exercise: Exercise) -> Story:
    if not interpreted() or not exercise.once:
        return {}
    return {LOADS: 1, STORES: 1, PROGRAMS: exercise.programs}


def _seen(exercise: Exercise, seen: Seen) -> Story:
    if not exercise.once:
        return {}
    loads, stores = (int(seen.counts(exercise.once, kind).max()) for kind in ("load", "store"))
    programs = {access.program for access in seen.of(exercise.once, "load")}
    return {LOADS: loads, STORES: stores, PROGRAMS: len(programs)}


def _otherwise_made(seen: Seen, before: Tensors, changed: Tensors) -> bool:
    """Whether numbers are new that no program stored."""
    for key, x in changed.items():
        same = (x == before[key]) | (x.isnan() & before[key].isnan())
        if bool((~same.numpy() & (seen.counts(key, "store") == 0)).any()):
            return True
    return False


def _root(error: BaseException) -> BaseException:
    """What the interpreter wraps, once for each function that it passes."""
    while type(error).__name__ == "InterpreterError" and error.__cause__ is not None:
        error = error.__cause__
    return error


def _error(mine: Story, right: Story) -> float:
    """The largest error, as a share of the largest number; infinite if more than numbers differ."""
    errors = [0.0]
    for key, x in right.items():
        if isinstance(x, Tensor):
            largest = x[x.isfinite()].abs().max()
            errors.append(float((mine[key] - x).abs().nan_to_num().max() / largest))
        elif mine[key] != x:
            return float("inf")
    return max(errors)
