"""What a table of kernels can be asked for by.

Invariant: no import: the command line offers these names without waiting for torch.
"""

from typing import Literal

KernelChoice = Literal["auto", "torch", "triton", "cache"]
