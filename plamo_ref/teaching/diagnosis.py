"""What a wrong answer has in common with the right one: off by one, twice as large, shuffled.

Invariant: a sentence is only said when it is true of every value of the answer, so it never sends
a learner the wrong way. Used by `check_exercise`; each lesson adds the mistakes of its own subject.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def diagnose(got: Any, expected: Any) -> str:
    """The likely mistake in a sentence, or "" when nothing general can be said."""
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        if got.keys() != expected.keys():
            return ""
        got, expected = [got[key] for key in expected], list(expected.values())
    if _gave_none(got, expected):
        return "the function gave None: is there a `return` on every way through it?"
    a, b = _numbers(got), _numbers(expected)
    if a is None or b is None:
        return ""
    if a.shape != b.shape:
        return _of_shapes(a, b)
    if a.dtype.kind == "b" or b.dtype.kind == "b":
        return _of_masks(a, b)
    return _of_values(a.astype(float).ravel(), b.astype(float).ravel())


def _gave_none(got: Any, expected: Any) -> bool:
    """Whether it is None, all through or where None is never right."""
    if not isinstance(got, list | tuple):
        return got is None
    right = expected if isinstance(expected, list | tuple) else [None]
    nones = [g is None for g, _ in zip(got, right, strict=False)]
    return any(nones) and (all(nones) or all(e is not None for e in right))


def _numbers(value: Any) -> np.ndarray | None:
    try:
        array = np.asarray(value.tolist() if hasattr(value, "tolist") else value)
    except (ValueError, TypeError):
        return None
    return array if array.dtype.kind in "biuf" else None


def _of_shapes(a: np.ndarray, b: np.ndarray) -> str:
    if a.ndim == b.ndim == 2 and a.T.shape == b.shape:
        return "rows and columns have changed places"
    if a.ndim == b.ndim == 1 and abs(len(a) - len(b)) == 1:
        return f"one item too {'many' if len(a) > len(b) else 'few'}"
    return ""


def _of_masks(a: np.ndarray, b: np.ndarray) -> str:
    a, b = a.astype(bool), b.astype(bool)
    if (a != b).all():
        return "exactly the opposite: true and false have changed places"
    if (a | ~b).all():
        return "everything that should be true is, and some things more"
    if (~a | b).all():
        return "nothing is true that should not be, but something is missing"
    return ""


def _of_values(a: np.ndarray, b: np.ndarray) -> str:
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or not a.size or np.allclose(a, b):
        return ""
    gap = a - b
    if np.allclose(gap, gap[0]) and abs(gap[0]) == 1:
        return f"{_every(a)} is 1 too {'large' if gap[0] > 0 else 'small'}"
    if np.allclose(a, -b):
        return f"{_every(a)} has the wrong sign"
    there = b != 0
    if there.any() and not a[~there].any():
        ratio = a[there] / b[there]
        if np.allclose(ratio, ratio[0]) and (factor := _factor(float(ratio[0]))):
            return f"{_every(a)} is {factor} the right one"
    if a.size > 1 and np.allclose(np.sort(a), np.sort(b)):
        return "the right values, in another order"
    if np.array_equal(np.round(b), b) and np.abs(gap).max() < 1:
        return "right but for rounding"
    return ""


def _every(a: np.ndarray) -> str:
    return "the value" if a.size == 1 else "every value"


def _factor(ratio: float) -> str:
    """A factor that somebody forgot is a small whole number, or thousands; else it is chance."""
    whole = round(ratio if ratio >= 1 else 1 / ratio) if ratio > 0 else 0
    known = 2 <= whole <= 16 or whole in (100, 1000, 1024)
    if not known or not np.isclose(ratio, whole if ratio >= 1 else 1 / whole):
        return ""
    return f"{whole} times" if ratio >= 1 else f"1/{whole} of"
