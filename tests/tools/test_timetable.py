"""The timetables: every minute is a lesson's own, and a plan that does not fit its lessons fails.

Invariant tested: `timetables.md` is what the plan and the lessons say now.
"""

import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from tools.course import slides, timetable
from tools.course.timetable import Cut, Lesson, PlanError, Row, in_class, read_cuts

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / timetable.TARGET).read_text(encoding="utf-8")
LESSON = Lesson(
    number="07",
    title="07 · A lesson",
    page="07.md",
    rows=(
        Row("1–2 set-up", 3),
        Row("6 build", 20),
        Row("7 exercises", 30, (1, 2)),
        Row("8 use", 7),
    ),
    limits=(10, 20),
    steps=(1, 2, 3),
)


@pytest.fixture(scope="module")
def cuts() -> dict[str, Cut]:
    return read_cuts(ROOT)


def test_the_page_is_what_the_plan_says(cuts):
    assert timetable.written(PAGE, cuts) == PAGE


def test_each_cut_teaches_its_lessons_once(cuts):
    for name, cut in slides.CUTS.items():
        known = cut or tuple(p.stem.partition("_")[0] for p in (ROOT / "course/lessons").glob("*"))
        assert sorted(cuts[name].lessons) == sorted(known)


@pytest.mark.parametrize("name", slides.CUTS)
def test_a_day_has_no_gap_and_people_get_a_rest(cuts, name):
    for day in cuts[name].days:
        assert all(one.begin + one.minutes == two.begin for one, two in pairwise(day))
        last_rest = day[0].begin
        for item in day:
            assert 0 <= item.minutes <= 60
            if item.what in ("break", "lunch"):
                assert item.begin - last_rest <= 180, "three hours without a break"
                last_rest = item.begin + item.minutes


@pytest.mark.parametrize(
    ("entry", "minutes", "done", "left"),
    [
        ({}, 30, "", "exercises 1, 2"),
        ({"exercises": [2]}, 50, "exercise 2", "exercise 1"),
        ({"steps": [1]}, 17, "step 1", "steps 2, 3; exercises 1, 2"),
        ({"leave": ["8"], "exercises": [1, 2]}, 53, "exercises 1, 2", "8 use"),
    ],
)
def test_a_class_takes_what_it_does_of_a_lesson(entry, minutes, done, left):
    item = in_class(LESSON, entry, 540)
    assert (item.begin, item.minutes, item.done, item.left) == (540, minutes, done, left)


@pytest.mark.parametrize("entry", [{"steps": [4]}, {"exercises": [3]}, {"leave": ["9"]}])
def test_what_a_lesson_has_not_cannot_be_done(entry):
    with pytest.raises(PlanError, match=r"lesson 07: .* the exercises \(1, 2\)"):
        in_class(LESSON, entry, 540)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            ('until = "13:00"', 'until = "12:30"'),
            "half-day, day 1: -\\d+ minutes are left until 12:30",
        ),
        (('{lesson = "01"', '{lesson = "99"'), "no lesson 99"),
    ],
)
def test_a_plan_that_does_not_add_up_is_refused(tmp_path, change, complaint):
    (tmp_path / "notebooks").mkdir()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        (tmp_path / "notebooks" / path.name).symlink_to(path)
    shutil.copytree(ROOT / "course", tmp_path / "course")
    source = tmp_path / timetable.SOURCE
    source.write_text(source.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    with pytest.raises(PlanError, match=complaint):
        read_cuts(tmp_path)


def test_a_restart_point_is_named_where_somebody_needs_it():
    links = re.findall(r"README\.md#([\w-]+)", PAGE)
    headings = re.findall(
        r"^## (.*)$", (ROOT / "course/README.md").read_text(encoding="utf-8"), re.M
    )
    assert set(links) <= {heading.lower().replace(" ", "-") for heading in headings}
