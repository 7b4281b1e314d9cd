"""Tests in this folder need kernels that were defined for Triton's interpreter.

Invariant: they run in a process of their own, started by tests/kernels/test_triton_kernels.py,
because Triton decides when a kernel is defined whether it will be compiled or interpreted.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
