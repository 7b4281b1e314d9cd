"""check(): one line when a step is right, and where to look when it is not.

Invariant: what it prints depends on the claim alone (the tolerance, never the rounding error that
was measured), so a notebook's output is the same on every machine.
Used by every notebook.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec

import numpy as np

from plamo_ref.errors import PlamoRefError
from plamo_ref.teaching.diagnosis import diagnose
from plamo_ref.teaching.progress import note

_TOLERANCE = {8: 1e-10, 4: 1e-5}  # by bytes per element of the coarser side; the rest is 16 bit
_HALF_TOLERANCE = 2e-2
P = ParamSpec("P")
_KINDS = {"b": "bool", "i": "integer", "u": "integer", "f": "float", "c": "complex"}


class CheckFailed(PlamoRefError, AssertionError):  # noqa: N818 (as in AssertionError's family)
    """A step does not give what the reference gives; the message says where they part."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows: the message. Where `check` raised it helps nobody."""
        return str(self).splitlines()


def check(
    name: str,
    got: Any,
    expected: Any,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    hint: str = "",
) -> None:
    """Print "✓ name" when `got` is `expected`, else raise.

    Tensors, arrays, numbers, and nested lists, tuples and dicts of them; anything else by `==`.
    Floats may differ by atol + rtol · |expected|. Both default to 1e-10 in float64, 1e-5 in
    float32, 2e-2 in 16 bits; giving only one of them sets the other to 0.

    Raises:
        CheckFailed: with shape, dtype, first differing index, both values, largest difference, and
            `hint`.
    """
    problem, bound = _compare(got, expected, atol, rtol)
    if problem:
        raise CheckFailed(_message(name, problem, hint))
    print(_passed(name, bound))


def check_that(name: str, condition: Any, hint: str = "") -> None:
    """Print "✓ name" when the condition holds, else raise CheckFailed with the hint."""
    if not bool(condition):
        raise CheckFailed(_message(name, "the claim does not hold", hint))
    print(f"✓ {name}")


def noted(check: Callable[Concatenate[str, P], None]) -> Callable[Concatenate[str, P], None]:
    """The check, whose refusals are noted under its name (`progress.py`)."""

    @functools.wraps(check)
    def noting(name: str, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            check(name, *args, **kwargs)
        except CheckFailed:
            note(name, "wrong")
            raise

    return noting


@noted
def check_exercise(
    name: str,
    answer: Any,
    expected: Any,
    *,
    atol: float | None = None,
    rtol: float | None = None,
    hint: str = "",
    mistakes: Mapping[str, Any] | None = None,
) -> None:
    """`check` for an exercise's stub: an answer still open is reported as such, not as wrong.

    What would have been right is not told: a message is to be understood, not to be copied.

    Args:
        answer: a value, or a function of no arguments (called here). It is open as long as it is
            `...` or raises NotImplementedError.
        mistakes: sentence → the answer that this mistake leads to, or a function that gives it
            (called only when the answer is wrong). An answer equal to one of them is told that
            sentence instead of the hint.

    Raises:
        CheckFailed: as `check` does, with the likely mistake where one is recognised.
    """
    try:
        value = answer() if isinstance(answer, Callable) else answer  # type: ignore[arg-type]
    except NotImplementedError:
        value = ...
    except CheckFailed:
        raise
    except Exception as error:
        problem = f"your code raised {type(error).__name__}: {error}"
        raise CheckFailed(_message(name, problem, hint)) from error
    if value is ...:
        note(name, "open")
        print(f"○ {name}: yours to do")
        return
    problem, bound = _compare(value, expected, atol, rtol, told=False)
    if problem:
        raise CheckFailed(_verdict(name, problem, value, expected, hint, mistakes or {}))
    note(name, "passed")
    print(_passed(name, bound))


def _verdict(
    name: str, problem: str, value: Any, expected: Any, hint: str, mistakes: Mapping[str, Any]
) -> str:
    """A mistake that the lesson knows, else what can be said of any numbers, and the hint."""
    for sentence, leads_to in mistakes.items():
        wrong = leads_to() if isinstance(leads_to, Callable) else leads_to  # type: ignore[arg-type]
        if not _compare(value, wrong, None, None)[0]:
            return _message(name, problem, "", sentence)
    return _message(name, problem, hint, diagnose(value, expected))


def _passed(name: str, bound: float | None) -> str:
    return f"✓ {name}" + (f" (within {bound:.0e})" if bound else " (equal)")


def _message(name: str, problem: str, hint: str, likely: str = "") -> str:
    lines = [f"✗ {name}: {problem}"]
    lines += [f"  Likely: {likely}"] if likely else []
    return "\n".join([*lines, f"  Look at: {hint}"] if hint else lines)


def _compare(
    got: Any, expected: Any, atol: float | None, rtol: float | None, *, told: bool = True
) -> tuple[str, float | None]:
    """("" or what differs, the bound that was applied: None for exact comparison).

    `told`: the expected value is part of what is said.
    """
    if _is_nested(expected) or _is_nested(got):
        return _compare_nested(got, expected, atol, rtol, told)
    a, b = _array(got), _array(expected)
    if a is None or b is None:
        if (a is None) != (b is None):
            return _other_kind(got, expected, told), None
        if type(got) is not type(expected) or got != expected:
            return _differ(repr(got), repr(expected), told), None
        return "", None
    return _compare_arrays(a, b, got, expected, atol, rtol, told)


def _differ(got: str, expected: str, told: bool) -> str:
    return f"got {got}, " + (f"expected {expected}" if told else "which is not it")


def _other_kind(got: Any, expected: Any, told: bool) -> str:
    """Two values of which one is a block of numbers, or a container, and the other is not."""
    if any(len(repr(value)) > 80 for value in (got, expected)):
        return f"got {_kind(got)}, expected {_kind(expected)}"
    return _differ(repr(got), repr(expected), told)


def _kind(value: Any) -> str:
    """What a value is, where it is too long to be shown."""
    size = f" of shape {list(value.shape)}" if hasattr(value, "shape") else ""
    size = f" of {len(value)} items" if isinstance(value, list | tuple) else size
    return f"{type(value).__name__}{size}"


def _is_nested(value: Any) -> bool:
    """A container that is no rectangular block of numbers."""
    return isinstance(value, Mapping) or (isinstance(value, list | tuple) and _array(value) is None)


def _compare_nested(
    got: Any, expected: Any, atol: float | None, rtol: float | None, told: bool
) -> tuple[str, float | None]:
    pairs: list[tuple[Any, Any, Any]]
    if isinstance(got, Mapping) and isinstance(expected, Mapping):
        if got.keys() != expected.keys():
            missing = sorted(map(str, expected.keys() - got.keys()))
            extra = sorted(map(str, got.keys() - expected.keys()))
            return f"keys missing: {missing}, keys too many: {extra}", None
        pairs = [(key, got[key], expected[key]) for key in expected]
    elif (
        isinstance(got, Sequence)
        and isinstance(expected, Sequence)
        and not (isinstance(got, str) or isinstance(expected, str))
    ):
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(got, expected, strict=False))]
    else:
        return _other_kind(got, expected, told), None
    bounds: list[float] = []
    for key, a, b in pairs:
        problem, bound = _compare(a, b, atol, rtol, told=told)
        if problem:
            return f"at [{key!r}]: {problem}", None
        bounds += [bound] if bound else []
    if len(got) != len(expected):
        return f"got {len(got)} items, expected {len(expected)}; the first ones agree", None
    return "", max(bounds, default=None)


def _array(value: Any) -> np.ndarray | None:
    """As a numpy array (bfloat16 widened to float32), or None when it is no number."""
    if _is_tensor(value):
        value = value.detach().cpu()
        return (value.float() if _dtype(value) == "bfloat16" else value).numpy()
    if isinstance(value, list | tuple):
        if any(_is_tensor(v) or isinstance(v, np.ndarray | str | bytes) for v in value):
            return None
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, RuntimeError):
            return None  # ragged
        return array if array.dtype.kind in _KINDS else None
    if isinstance(value, np.ndarray | np.generic | bool | int | float | complex):
        array = np.asarray(value)
        return array if array.dtype.kind in _KINDS else None
    return None


def _is_tensor(value: Any) -> bool:
    """Of torch, which is not imported for that: some lessons run where there is none."""
    return hasattr(value, "detach") and hasattr(value, "dtype")


def _dtype(value: Any, kind: str = "") -> str:
    return str(getattr(value, "dtype", kind)).removeprefix("torch.")


def _itemsize(value: Any) -> int:
    dtype = getattr(value, "dtype", None)
    return int(dtype.itemsize) if dtype is not None else 8


def _compare_arrays(
    a: np.ndarray,
    b: np.ndarray,
    got: Any,
    expected: Any,
    atol: float | None,
    rtol: float | None,
    told: bool,
) -> tuple[str, float | None]:
    if a.shape != b.shape:
        return f"shape {list(a.shape)}, expected {list(b.shape)}", None
    typed = hasattr(got, "dtype") and hasattr(expected, "dtype")
    if (typed and _KINDS[a.dtype.kind] != _KINDS[b.dtype.kind]) or (
        (a.dtype.kind == "b") != (b.dtype.kind == "b")
    ):
        kinds = _KINDS[a.dtype.kind], _KINDS[b.dtype.kind]  # of lists
        return f"dtype {_dtype(got, kinds[0])}, expected {_dtype(expected, kinds[1])}", None
    if a.dtype.kind in "biu" and b.dtype.kind in "biu" and atol is None and rtol is None:
        differs, bound = a != b, None
    else:
        if atol is None and rtol is None:
            size = min(_itemsize(got), _itemsize(expected))
            atol = rtol = _TOLERANCE.get(size, _HALF_TOLERANCE)
        atol, rtol = atol or 0.0, rtol or 0.0
        with np.errstate(invalid="ignore"):  # inf - inf: settled by the equality below
            close = np.abs(a - b) <= atol + rtol * np.abs(np.where(np.isfinite(b), b, 0))
        differs, bound = ~(close | (a == b)), max(atol, rtol)
    if np.any(differs):
        return _where(a, b, differs, told), None
    return "", (bound if a.size else None)


def _where(a: np.ndarray, b: np.ndarray, differs: np.ndarray, told: bool) -> str:
    """First differing index with both values, how many differ, and the largest difference."""
    if a.ndim == 0:
        return _differ(repr(a.item()), repr(b.item()), told)
    index = tuple(int(i) for i in np.argwhere(differs)[0])
    place = ", ".join(map(str, index))
    text = f"first at [{place}]: {_differ(_show(a[index]), _show(b[index]), told)}"
    text += f"; {int(differs.sum())} of {a.size} differ"
    if a.dtype.kind == "b" or not told:
        return text
    wide = np.complex128 if "c" in a.dtype.kind + b.dtype.kind else np.float64
    with np.errstate(invalid="ignore"):
        gap = np.abs(a.astype(wide) - b.astype(wide))
    finite = gap[np.isfinite(gap)]
    largest = f"{finite.max():.3g}" if finite.size else "not finite"
    bad = int(np.isnan(a).sum()) if a.dtype.kind in "fc" else 0
    return text + f"; largest difference {largest}" + (f"; {bad} are NaN" if bad else "")


def _show(value: np.generic) -> str:
    return f"{value:.6g}" if value.dtype.kind == "f" else str(value.item())
