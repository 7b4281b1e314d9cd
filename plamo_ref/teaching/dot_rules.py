"""on_a_gpu(): tl.dot in the interpreter with the two rules that a GPU has and numpy has not.

    least size    the inner dimension of a product is at least 16, or the kernel does not compile
    precision     float32 operands are rounded to tf32 (10 bits of fraction), unless the kernel asks
                  for input_precision="ieee" or "tf32x3"

Invariant: a kernel that is right inside is right on a GPU as far as its products go; elsewhere the
interpreter is left as it was. tests/kernels/test_lesson_kernels.py asks the compiler the same.
Used by lesson 11.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from plamo_ref.errors import PlamoRefError

LEAST = 16


class DotError(PlamoRefError):
    """A product that a GPU's compiler refuses."""


def tf32(x: np.ndarray) -> np.ndarray:
    """float32 → the nearest number with 10 bits of fraction, in float32."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x0FFF) + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x)


@contextmanager
def on_a_gpu() -> Iterator[None]:
    """For as long as the block lasts, interpreted products obey a GPU's rules. Nor are sums of
    integers computed twice to find an overflow, which a compiled kernel does not do either."""
    from triton.runtime.interpreter import TensorHandle, interpreter_builder

    plain = interpreter_builder.create_dot

    def dot(a: Any, b: Any, d: Any, input_precision: Any, *rest: Any) -> Any:
        inner = a.data.shape[-1]
        if inner < LEAST:
            raise DotError(
                f"tl.dot of {list(a.data.shape)} and {list(b.data.shape)}: the inner dimension is "
                f"{inner}, where a GPU takes no less than {LEAST}; make the block larger, mask it"
            )
        if a.data.dtype == np.float32 and str(input_precision).endswith("TF32"):
            a = TensorHandle(tf32(a.data), a.dtype)
            b = TensorHandle(tf32(b.data), b.dtype)
        return plain(a, b, d, input_precision, *rest)

    checking = interpreter_builder.options
    interpreter_builder.create_dot = dot
    interpreter_builder.options = replace(checking, sanitize_overflow=False)
    try:
        yield
    finally:
        interpreter_builder.options = checking
        del interpreter_builder.create_dot
