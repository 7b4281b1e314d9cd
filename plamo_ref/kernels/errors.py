"""The error of this package.

Invariant: it names the argument or the choice that was wrong and says what to do.
"""

from plamo_ref.errors import PlamoRefError


class KernelError(PlamoRefError, ValueError):
    """Kernels that this machine or this version cannot run, or tensors that do not fit together."""
