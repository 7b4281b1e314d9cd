"""Trials of lesson 11's launchers: what each is called with, and what it has to leave behind.

Invariant: inputs are those of inputs.py, in float32; what is expected comes from the slow formulas
in float64. In the interpreter products obey a GPU's rules, so a ✓ there is one on a GPU.
Used by lesson 11.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plamo_ref.teaching.checks import CheckFailed
from plamo_ref.teaching.dot_rules import on_a_gpu
from plamo_ref.teaching.kernel_checks import Trial, unwritten
from plamo_ref.teaching.mamba_ramp import inputs, slow
from plamo_ref.teaching.mamba_ramp.inputs import Tensors
from plamo_ref.teaching.mamba_ramp.slips import FORMULAS

Launcher = Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """One launcher of the lesson."""

    cases: Callable[[], list[Tensors]]
    formula: Callable[..., Tensors]
    arguments: str  # in the order of the launcher's parameters
    new: tuple[str, ...]  # those of them that hold nothing yet
    like: str  # whose shape they have
    programs: tuple[str, int]  # of this kernel there have to be so many
    once: str = ""  # of this tensor every number is loaded once
    numbers: tuple[tuple[str, int], ...] = ()  # arguments behind the tensors


LAYER = "u z dt B C A D bias cache slots"
EXERCISES = {
    "decay": Exercise(
        *(inputs.decay, slow.decay, "dt bias A delta fade", ("delta", "fade"), "dt"),
        programs=("decay_kernel", 3),
    ),
    "conv_step": Exercise(
        *(inputs.conv, slow.conv, "u weight memory slots out", ("out",), "u"),
        programs=("conv_kernel", 8),
        numbers=(("BLOCK", 4),),
    ),
    "head_step": Exercise(
        *(inputs.head, slow.head, "state u B C delta fade y", ("y",), "u"),
        programs=("head_kernel", 1),
        once="state",
    ),
    "slots_step": Exercise(
        *(inputs.slots, slow.slots, "u B C delta fade cache slots y", ("y",), "u"),
        programs=("slots_kernel", 6),
        once="cache",
    ),
    "update": Exercise(
        *(inputs.update, slow.update, f"{LAYER} y", ("y",), "u"),
        programs=("update_kernel", 16),
        once="cache",
        numbers=(("BLOCK_P", 4),),
    ),
    "walk": Exercise(
        *(inputs.walk, slow.walk, "u B C delta fade state y", ("y",), "u"),
        programs=("walk_kernel", 2),
        once="state",
    ),
    "chunk": Exercise(
        *(inputs.chunk, slow.chunk, "u delta A B C state y", ("y",), "u"),
        programs=("chunk_kernel", 1),
        once="state",
    ),
    "scan": Exercise(
        *(inputs.scan, slow.scan, f"{LAYER} starts has_past y", ("y",), "u"),
        programs=("scan_kernel", 6),
        once="cache",
        numbers=(("Q", 16),),
    ),
}


def interpreted() -> bool:
    """Whether kernels that are defined now are run by Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def trials(name: str) -> list[Trial]:
    """For `check_kernel`: all cases of an exercise."""
    exercise = EXERCISES[name]
    return [_trial(exercise, case) for case in exercise.cases()]


def tensors(name: str) -> tuple[Tensor, ...]:
    """What the launcher is called with in the first case, without the numbers behind them."""
    given = trials(name)[0].given.values()
    found = [value for value in given if isinstance(value, Tensor)]
    return tuple(x.clone() if interpreted() else x.cuda() for x in found)


def formula(name: str, trial: Trial, slip: str = "") -> Tensors:
    """What the formula makes of a trial, or a slip in it."""
    given = {k: v for k, v in trial.given.items() if isinstance(v, Tensor)}
    return _float32(EXERCISES[name].formula(_float64(given), slip=slip))


def mistakes(name: str) -> dict[str, Callable[[Trial], Tensors]]:
    """For `check_kernel`: what is said → what those who did that get from a trial."""
    return {said: partial(_slipped, name, slip) for said, slip in FORMULAS[name].items()}


def run(name: str, launcher: Launcher) -> Launcher:
    """The reader's launcher, with products as a GPU has them, also in the interpreter.

    Raises:
        CheckFailed: (when it is called) a mistake that is known by its NaN, which equal nothing; or
            all is right, but in three digits only.
    """
    exercise = EXERCISES[name]

    def launched(*arguments: Any) -> None:
        given = dict(zip(exercise.arguments.split(), arguments, strict=False))
        before = _float64(given)
        with ExitStack() as stack:
            if interpreted():
                stack.enter_context(np.errstate(all="ignore"))  # a GPU does not warn either
                stack.enter_context(on_a_gpu())
            launcher(*arguments)
        right, got = exercise.formula(before), _float64(given)
        if any((got[key].isnan() & ~right[key].isnan()).any() for key in right):
            _known_by_nan(name, before, got)
        elif name in ("chunk", "scan") and 2e-5 < _error(got, right) < 3e-3:
            raise CheckFailed(
                f"✗ {name}: three digits are right. tl.dot makes tf32 of float32 operands, unless "
                'it is asked for more: input_precision="tf32x3"'
            )

    return launched


def _known_by_nan(name: str, before: Tensors, got: Tensors) -> None:
    for said, slip in FORMULAS[name].items():
        slipped = EXERCISES[name].formula(before, slip=slip)
        close = (torch.allclose(got[k], x, 1e-4, 1e-4, equal_nan=True) for k, x in slipped.items())
        if all(close):
            raise CheckFailed(f"✗ {name}: NaN where there should be numbers\n  Likely: {said}")


def _slipped(name: str, slip: str, trial: Trial) -> Tensors:
    return formula(name, trial, slip)


def _trial(exercise: Exercise, case: Tensors) -> Trial:
    shape = case[exercise.like].shape
    given: dict[str, Any] = {
        name: unwritten(*shape) if name in exercise.new else _float32({name: case[name]})[name]
        for name in exercise.arguments.split()
    }
    return Trial(
        given | dict(exercise.numbers),
        _float32(exercise.formula(case)),
        dict([exercise.programs]),
        read_once=tuple(filter(None, [exercise.once])),
    )


def _float32(tensors: Tensors) -> Tensors:
    return {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}


def _float64(tensors: Tensors) -> Tensors:
    """Copies on the CPU."""
    cpu = {name: x.cpu() for name, x in tensors.items()}
    return {name: x.double() if x.is_floating_point() else x for name, x in cpu.items()}


def _error(got: Tensors, right: Tensors) -> float:
    """The largest error as a share of the largest number; infinite where a number is missing."""
    errors = []
    for name, x in right.items():
        here, there = got[name][~x.isnan()], x[~x.isnan()]
        errors.append(
            float((here - there).abs().nan_to_num(nan=torch.inf).max() / there.abs().max())
        )
    return max(errors)
