"""first_divergence(): the layer microscope. Where do two runs of the same tokens part?

Invariant: what it names is the earliest quantity, in the order of the forward pass, of which some
token differs by more than the tolerance; everything before it agrees.
Built in notebooks/04_reference_generation.ipynb. T tokens, D hidden, L layers, V vocabulary.
"""

from dataclasses import dataclass, field, replace
from html import escape
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from plamo_ref.errors import PlamoRefError
from plamo_ref.teaching.diagrams import thermometer
from plamo_ref.teaching.recording import Quantity, Run, record

_TOLERANCE = {8: 1e-10, 4: 1e-4}  # relative, by bytes per element of the coarser run
_HALF_TOLERANCE = 0.15  # bf16 noise alone reaches 5 % of the logits in a few layers


class DivergenceError(PlamoRefError, ValueError):
    """Two runs that cannot be compared: nothing in common, or different shapes."""


@dataclass(frozen=True)
class Divergence:
    """The first place where two runs part. `layer` is None before and after the layers."""

    layer: int | None
    token: int | None  # None: the quantity has no token axis (a state after the last token)
    quantity: str  # "input", "mixer.q after rope", "ssm_state", "logits" …
    difference: float  # largest |a - b| of that token
    scale: float  # root mean square of the quantity: what the difference is to be seen against
    table: tuple[tuple[str, float], ...] = field(repr=False)  # (quantity, relative error) in order
    index: int = field(repr=False)  # the row of `table` that is named here

    @property
    def place(self) -> str:
        layer = "" if self.layer is None else f"layer {self.layer}, "
        return layer + ("" if self.token is None else f"token {self.token}: ") + self.quantity

    def __str__(self) -> str:
        gap = f"off by {self.difference:.2g} at scale {self.scale:.2g}"
        return f"first divergence: {self.place} ({gap})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{'→ ' if i == self.index else ''}{escape(name)}</td><td>{error:.0e}</td></tr>"
            for i, (name, error) in enumerate(self.table)
        )
        head = "<tr><th>quantity</th><th>relative error</th></tr>"
        return f"<p>{escape(str(self))}</p><table>{head}{rows}</table>"

    def figure(self, *, around: int = 10) -> Figure:
        """The thermometer: `around` quantities before and after the first that parted."""
        low, high = max(0, self.index - around), self.index + around + 1
        shown = self.table[low:high]
        return thermometer([n for n, _ in shown], [e for _, e in shown], self.index - low)

    @property
    def alt(self) -> str:
        """One line for `show`."""
        return f"relative error by quantity; {self.place} is the first that stands out"


def first_divergence(
    a: Any, b: Any, *, rtol: float | None = None, atol: float = 0.0
) -> Divergence | None:
    """Where runs `a` and `b` part, or None when they do not ("no divergence").

    Args:
        a, b: a `Run` from `record` (sees inside the layers), a `ReferenceOutput`, or arrays of
            another implementation by name: `logits` [T, V], `hidden_states` [L+1, T, D] (index
            i < L: input of layer i; L: after the last norm), `layers.{i}.conv_state`, `.ssm_state`,
            `.key_cache_prerope`, `.value_cache`. Only quantities that both have are compared, and
            only tokens that both have.
        rtol: tolerance relative to the root mean square of the quantity (for a token, over the
            token). Defaults by the coarser dtype: 1e-10 float64, 1e-4 float32, 5e-2 16 bits.
        atol: added to it.

    Raises:
        DivergenceError: nothing in common, or a quantity with two shapes.
    """
    left, right = Run.of(a), Run.of(b)
    same_length = left.tokens == right.tokens
    common = [q for q in left.values if q in right.values and (same_length or not q.is_state)]
    if not common:
        raise DivergenceError(f"no quantity in common: {_some(left)} against {_some(right)}")
    if rtol is None:
        rtol = _default_tolerance(left, right)
    found: Divergence | None = None
    table: list[tuple[str, float]] = []
    for quantity in common:
        x, y = _pair(quantity, left.values[quantity], right.values[quantity])
        if found is None:
            found = _parting(quantity, x, y, rtol, atol, left.tokens, len(table))
        table.append((str(quantity), _relative(x, y)))
    return None if found is None else replace(found, table=tuple(table))


def _some(run: Run) -> str:
    return ", ".join(str(q) for q in list(run.values)[:3]) or "(nothing)"


def _default_tolerance(left: Run, right: Run) -> float:
    """By the coarsest dtype anywhere: a float32 state in a bfloat16 run has bfloat16 noise."""
    values = (*left.values.values(), *right.values.values())
    return _TOLERANCE.get(min(int(v.dtype.itemsize) for v in values), _HALF_TOLERANCE)


def _pair(quantity: Quantity, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, cut to the tokens that both have."""
    a, b = _float64(x), _float64(y)
    shared = min(len(a), len(b))
    if quantity.along == "tokens":
        a, b = a[:shared], b[:shared]
    elif quantity.along == "newest":  # a window that keeps one key more is no difference yet
        a, b = a[len(a) - shared :], b[len(b) - shared :]
    if a.shape != b.shape:
        raise DivergenceError(
            f"{quantity}: shape {list(a.shape)} against {list(b.shape)}; "
            "compare runs of one shape of model, each without a batch dimension"
        )
    return a, b


def _float64(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def _relative(x: np.ndarray, y: np.ndarray) -> float:
    """Ratio of norms |x - y| / |y|; infinite where one side is not finite."""
    return _rms(_not_finite_is_infinite(x - y)) / (_rms(y) or 1.0)


def _parting(
    quantity: Quantity,
    x: np.ndarray,
    y: np.ndarray,
    rtol: float,
    atol: float,
    tokens: int,
    index: int,
) -> Divergence | None:
    """The first token of this quantity that differs (or the quantity as a whole).

    Judged by the norm over the token: an element near zero may be noisy where the vector agrees.
    """
    rows: list[tuple[int | None, np.ndarray, np.ndarray]] = [(None, x, y)]
    if quantity.along != "state":
        first = tokens - len(x) if quantity.along == "newest" else 0
        rows = [(first + t, x[t], y[t]) for t in range(len(x))]
    for token, p, q in rows:
        gap = _not_finite_is_infinite(p - q)
        scale = _rms(q)
        if _rms(gap) > atol + rtol * (scale if np.isfinite(scale) else 0.0):
            largest = float(np.abs(gap).max(initial=0.0))
            return Divergence(quantity.layer, token, quantity.name, largest, scale, (), index)
    return None


def _not_finite_is_infinite(gap: np.ndarray) -> np.ndarray:
    """NaN agrees with nothing, not even with NaN."""
    return np.where(np.isfinite(gap), gap, np.inf)


__all__ = ["Divergence", "DivergenceError", "Run", "first_divergence", "record"]
