"""What lesson 15 draws: formats by bits and numbers, panels of errors, steps over their bytes.

Invariant tested: the numbers of a format are those that torch rounds to; a box is a bit; what is
drawn is what was given, and one format has one colour.
"""

import pytest
import torch

from plamo_ref.teaching.fewer_bytes import bytes_of, look_of, moving_dots, panels
from plamo_ref.teaching.formats import FORMATS, Format, bit_boxes, combs

BY_NAME = {each.name: each for each in FORMATS}


def test_the_numbers_of_e4m3_are_those_that_torch_rounds_to():
    numbers = BY_NAME["e4m3"].positive() * 448
    assert len(numbers) == 126  # 127 patterns are above 0, and the last is no number
    assert [numbers[0].item(), numbers[-1].item()] == [2**-9, 448]
    between = (numbers[1:] + numbers[:-1]) / 2
    kept = (between * 1.0001).to(torch.float8_e4m3fn).double()
    assert torch.equal(kept, numbers[1:])


def test_integers_are_even_and_bfloat16_is_even_in_ratio():
    assert torch.allclose(BY_NAME["int4"].positive() * 7, torch.arange(1.0, 8, dtype=torch.float64))
    assert len(BY_NAME["int8"].positive()) == 127
    numbers = BY_NAME["bfloat16"].positive()
    large = numbers[numbers > 1e-4]
    assert (large[1:] / large[:-1]).max() <= 1 + 1 / 128
    assert torch.equal(numbers, numbers.sort().values)


def test_a_box_is_a_bit_and_all_are_as_wide():
    fig = bit_boxes([Format("float32", 8, 23), Format("int4", 0, 3)])
    boxes = fig.axes[0].patches
    assert len(boxes) == 32 + 4
    assert {box.get_width() for box in boxes} == {1}
    said = [text.get_text() for text in fig.axes[0].texts]
    assert said == ["float32, 4 B", "int4, ½ B"]
    words = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert words == ["sign", "exponent", "mantissa, or whole number"]


def test_a_tooth_is_a_number_on_both_axes():
    linear, log = combs([BY_NAME["int4"]], least=0.5).axes
    (teeth,), (few,) = linear.collections, log.collections
    assert len(teeth.get_segments()) == 7
    assert len(few.get_segments()) == 4  # of 7: those above one half
    assert (linear.get_xscale(), log.get_xscale()) == ("linear", "log")


def test_one_format_has_one_colour_and_what_is_behind_the_comma_a_dash():
    names = ["fp8", "fp8, stochastic", "int8", "int8, stochastic"]
    looks = [look_of(name, names) for name in names]
    assert looks[0].colour == looks[1].colour != looks[2].colour == looks[3].colour
    assert looks[0].dash == looks[2].dash != looks[1].dash == looks[3].dash


def test_panels_draw_what_they_are_given_and_name_it_once():
    first = {"a": [1.0, 2.0], "a, b": [3.0, 4.0]}
    fig = panels({"one": ([1, 1000], first), "two": ([1, 10], {"a": [5.0, 6.0]})}, xlabel="n")
    one, two = fig.axes
    assert [list(line.get_ydata()) for line in one.lines] == [[1, 2], [3, 4]]
    assert [list(line.get_ydata()) for line in two.lines] == [[5, 6]]
    assert (one.get_xscale(), two.get_xscale()) == ("log", "linear")
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["a", "a, b"]


def step(batch: int, ms: float, gb_per_s: float) -> dict[str, float]:
    return {"batch": batch, "step_ms": ms, "gb_per_s": gb_per_s, "copy_gb_per_s": 4000.0}


def test_a_dot_is_a_step_over_its_bytes_and_the_line_is_a_copy():
    steps = {
        "wide": [step(1, 5.0, 2000.0), step(8, 10.0, 2000.0)],
        "narrow": [step(1, 4.0, 1000.0)],
    }
    assert bytes_of(steps["wide"][0]) == pytest.approx(10.0)
    lines = [(list(x.get_xdata()), list(x.get_ydata())) for x in moving_dots(steps).axes[0].lines]
    copy, of_one, of_eight, wide, narrow = lines
    assert copy[1][1] / copy[0][1] == pytest.approx(0.25)  # ms for a GB
    assert of_one == ([10.0, 4.0], [5.0, 4.0])
    assert of_eight == ([20.0], [10.0])
    assert wide == ([10.0, 20.0], [5.0, 10.0])
    assert narrow == ([4.0], [4.0])
