"""Every Triton kernel compiled for sm_80, at the published models' shapes, with no GPU.

Invariant tested: the launches of 1B and 8B compile as they are, with no spill, within the registers
and the shared memory of the device. For sm_90, and for what else is asked of machine code:
test_triton_compile.py.
"""

import pytest
from compiled_launches import Compiler, check_published

from plamo_ref.bench.kernels.parts import MODELS


@pytest.mark.parametrize("shape", MODELS, ids=lambda shape: shape.name)
def test_published_shapes_compile_without_spills(shape, tmp_path):
    check_published(shape, 80, Compiler(tmp_path))
