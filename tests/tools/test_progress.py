"""What self-checks note, for whom, and what a class sees of it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from plamo_ref.teaching import CheckFailed, check, check_exercise
from plamo_ref.teaching.kernel_checks import Trial, check_kernel, unwritten
from plamo_ref.teaching.progress import VARIABLE, note
from tools.course import progress
from tools.course.editions import exercises, number_of
from tools.course.progress import exercises_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "aki.jsonl"
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def states(path: Path) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(set(line) == {"check", "state", "at"} for line in lines), "and nothing else"
    return [(line["check"], line["state"]) for line in lines]


def an_exercise() -> int:
    raise NotImplementedError


def test_an_exercise_is_noted_open_wrong_and_passed(file: Path) -> None:
    check_exercise("六", an_exercise, 6)
    for answer in (5, 1 / 3, "six"):
        with pytest.raises(CheckFailed):
            check_exercise("六", answer, 6)
    with pytest.raises(CheckFailed, match="your code raised ZeroDivisionError"):
        check_exercise("六", lambda: 1 // 0, 6)
    check_exercise("六", 6, 6)
    check("a step on the way is none of anybody's business", 1, 1)
    assert states(file) == [("六", "open"), *[("六", "wrong")] * 4, ("六", "passed")]


def test_a_kernel_that_is_refused_is_noted_too(file: Path) -> None:
    trial = Trial({"out": unwritten(3)}, {"out": unwritten(3)}, {})
    with pytest.raises(CheckFailed):
        check_kernel("a copy", lambda out: 1 // 0, [], [trial])
    assert states(file) == [("a copy", "wrong")]


def test_nothing_is_written_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    check_exercise("six", 6, 6)
    assert list(tmp_path.iterdir()) == []


def test_a_stick_that_was_pulled_out_fails_no_check(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone" / "aki.jsonl"))
    check_exercise("six", 6, 6)
    assert "✓ six" in (said := capsys.readouterr().out)
    assert "not noted" in said


# --- the class ------------------------------------------------------------------------------------


def test_every_exercise_reports_under_a_name_of_its_own() -> None:
    known = exercises_of(ROOT)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        count = len(exercises(progress.nbformat.read(path, as_version=4)))
        mine = [exercise for lesson, exercise in known.values() if lesson == number_of(path)]
        assert mine == list(range(1, count + 1)), path.name


def test_a_class_sees_who_is_where(tmp_path, monkeypatch):
    by_place = {place: name for name, place in exercises_of(ROOT).items()}
    for name, notes in {
        "aki": [("05", 1, "wrong"), ("05", 1, "passed"), ("07", 2, "wrong")],
        "Bo": [("05", 1, "passed"), ("05", 2, "passed"), ("05", 2, "wrong"), ("05", 3, "open")],
    }.items():
        monkeypatch.setenv(VARIABLE, str(tmp_path / f"{name}.jsonl"))
        for lesson, exercise, state in notes:
            note(by_place[lesson, exercise], state)
    with (tmp_path / "aki.jsonl").open("a", encoding="utf-8") as torn:
        torn.write('{"check": "of another course", "state": "passed", "at": ""}\n{"chec')
    (tmp_path / "new.jsonl").write_text("", encoding="utf-8")
    monkeypatch.chdir(ROOT)
    said = CliRunner().invoke(progress.main, [str(tmp_path)]).output.splitlines()
    assert said[0] == "| name | 05 | 07 | last |"
    bo, aki = (row.split(" | ") for row in said[2:])
    assert bo[:3] == ["| Bo", "✓✓○", "···"]
    assert bo[3].startswith("05, exercise 3, ")
    assert aki[:3] == ["| aki", "✓··", "·✗·"]
    assert aki[3].startswith("07, exercise 2, ")


def test_an_empty_folder_is_said_to_be_one(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(progress.main, [str(tmp_path)])
    assert (done.exit_code, "no progress yet" in done.output) == (0, True)
