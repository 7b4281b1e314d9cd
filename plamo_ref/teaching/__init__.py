"""What all notebooks share, without torch: check(), figures, sliders, recorded results.

The layer microscope, which looks into tensors, is imported by its own names (recording.py,
divergence.py), and so is what single lessons show.
"""

from plamo_ref.teaching.checks import CheckFailed, check, check_exercise, check_that
from plamo_ref.teaching.diagrams import (
    bars,
    frames,
    gantt,
    layer_strip,
    lines,
    mask_heatmap,
    thermometer,
)
from plamo_ref.teaching.figures import (
    drawable,
    figure,
    figures,
    label,
    show,
    style_of,
)
from plamo_ref.teaching.recorded import Recorded, RecordedError, recorded, write_recorded
from plamo_ref.teaching.widgets import interactive

__all__ = [
    "CheckFailed",
    "Recorded",
    "RecordedError",
    "bars",
    "check",
    "check_exercise",
    "check_that",
    "drawable",
    "figure",
    "figures",
    "frames",
    "gantt",
    "interactive",
    "label",
    "layer_strip",
    "lines",
    "mask_heatmap",
    "recorded",
    "show",
    "style_of",
    "thermometer",
    "write_recorded",
]
