"""What the notebooks share: check(), figures, sliders, recorded results, the layer microscope."""

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
from plamo_ref.teaching.divergence import Divergence, DivergenceError, first_divergence
from plamo_ref.teaching.figures import (
    drawable,
    figure,
    figures,
    label,
    show,
    style_of,
)
from plamo_ref.teaching.recorded import Recorded, RecordedError, recorded, write_recorded
from plamo_ref.teaching.recording import Run, record
from plamo_ref.teaching.widgets import interactive

__all__ = [
    "CheckFailed",
    "Divergence",
    "DivergenceError",
    "Recorded",
    "RecordedError",
    "Run",
    "bars",
    "check",
    "check_exercise",
    "check_that",
    "drawable",
    "figure",
    "figures",
    "first_divergence",
    "frames",
    "gantt",
    "interactive",
    "label",
    "layer_strip",
    "lines",
    "mask_heatmap",
    "record",
    "recorded",
    "show",
    "style_of",
    "thermometer",
    "write_recorded",
]
