"""The names that numbers have in settings, and torch's types for them.

Invariant: the names are known without torch, for which the commands must not wait.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float64", "bfloat16")  # float16 overflows in this model
BYTES = ("fp8", "int8")  # of a state, with a scale for each head


def torch_dtype(name: str) -> "torch.dtype":
    """The dtype of one of `DTYPES` or `BYTES`."""
    import torch

    dtype = getattr(torch, "float8_e4m3fn" if name == "fp8" else name)
    assert isinstance(dtype, torch.dtype)
    return dtype
