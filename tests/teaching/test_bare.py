"""A GPU machine without Jupyter can time the kernels of the lessons."""

import subprocess
import sys

BARRED = """
import sys
for name in ("IPython", "ipywidgets", "ipykernel"):
    sys.modules[name] = None  # importing it fails
import plamo_ref.teaching.attention_ramp.timing
import plamo_ref.teaching.mamba_ramp.timing
"""


def test_timing_a_readers_kernels_needs_no_jupyter():
    done = subprocess.run(
        [sys.executable, "-c", BARRED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
