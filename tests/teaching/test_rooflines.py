"""Recorded kernels beside their floors and under the roofline.

Invariant tested: a number is drawn where it was measured and nowhere else; with an incomplete
record the lesson stops.
"""

import pytest

from plamo_ref.teaching.recorded import Recorded, RecordedError
from plamo_ref.teaching.rooflines import (
    against_floor,
    ceilings_of,
    measured_rates,
    roofline,
)

CEILINGS = {"copy_gb_per_s": 4000.0, "product_tflop_per_s": 800.0}
ROWS = [
    {"operation": "a", "case": "1", "us": 20.0, "floor_us": 10.0, "percent_of_floor": 50.0},
    {"operation": "b", "case": "2", "us": 40.0, "floor_us": 30.0, "percent_of_floor": 75.0},
]


def test_a_record_without_ceilings_is_refused():
    whole = Recorded("k", "M", {}, "c", "2026-01-01", [row | CEILINGS for row in ROWS])
    assert ceilings_of(whole) == (4e12, 8e14)
    with pytest.raises(RecordedError, match="no row with copy_gb_per_s"):
        ceilings_of(Recorded("k", "M", {}, "c", "2026-01-01", ROWS))


def test_every_kernel_of_a_roofline_is_measured_or_the_record_is_refused():
    record = Recorded("k", "M", {}, "c", "2026-01-01", ROWS)
    assert measured_rates(record, {"first": (100.0, "a 1")}) == {"first": 100 / 20e-6}
    with pytest.raises(RecordedError, match="k: no row of b 3; measure it again"):
        measured_rates(record, {"first": (100.0, "a 1"), "second": (1.0, "b 3")})


def test_each_kernel_stands_beside_its_floor():
    fig, alt = against_floor(ROWS)
    lines = [line.get_xdata() for line in fig.axes[0].lines]
    assert [x.tolist() if hasattr(x, "tolist") else list(x) for x in lines] == [
        *([10, 20], [10], [20]),
        *([30, 40], [30], [40]),
    ]
    assert alt == "2 kernels against their floors; nearest b 2 at 75 %, farthest a 1 at 50 %"


def test_a_measured_kernel_is_a_dot_the_other_a_place_on_the_roof():
    fig = roofline({"a": 1.0, "b": 1000.0}, 4e12, 8e14, {"a": 1e12})
    dots = {line.get_label(): line for line in fig.axes[0].lines if "FLOP" in line.get_label()}
    assert [float(line.get_ydata()[0]) for line in dots.values()] == [1.0, 800.0]
    hollow = [line.get_markerfacecolor() == "white" for line in dots.values()]
    assert hollow == [False, True]
