"""The pre-flight: each thing is tried, each failure has a cure, each lesson knows what it needs."""

import importlib
import json
import re
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner

from plamo_ref.commands import _workshop, doctor
from plamo_ref.commands._workshop import LESSONS
from plamo_ref.commands.doctor import Finding
from tools.course.editions import number_of
from tools.course.measured import minutes_of

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {number_of(path): path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
FINE = {name: Finding(True, name) for lesson in LESSONS for name in lesson.needs}


def sources(number: str) -> str:
    notebook = nbformat.read(NOTEBOOKS[number], as_version=4)
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def test_the_table_knows_every_lesson_and_its_minutes():
    assert [lesson.number for lesson in LESSONS] == list(NOTEBOOKS)
    cards = [minutes_of(nbformat.read(path, as_version=4)) for path in NOTEBOOKS.values()]
    assert [lesson.minutes for lesson in LESSONS] == cards


def test_the_seconds_are_those_that_were_measured():
    measured = json.loads((ROOT / "course" / "measured.json").read_text(encoding="utf-8"))
    seconds = {number_of(row["lesson"]): row["seconds"] for row in measured["lessons"]}
    for lesson in LESSONS:
        assert 0.5 <= lesson.seconds / seconds[lesson.number] <= 2, lesson.number


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.number)
def test_a_lesson_needs_what_its_code_uses(lesson):
    code = sources(lesson.number)
    interprets = re.search(r"TRITON_INTERPRET|\blane\(\)", code) is not None
    assert interprets == ("interpreter" in lesson.needs)
    compiles = re.search(r"torch\.compile\(|\bcompiled?\(|measure_compile", code) is not None
    assert compiles or "compiler" not in lesson.needs
    serves = re.search(r"plamo_ref\.server|llguidance|GuidedParams|plamo_ref\.teaching\.live", code)
    assert serves or "server" not in lesson.needs


def test_on_this_machine_everything_that_is_tried_works():
    """`make test` installs all extras; a compiler and fonts are the machine's own affair."""
    found = _workshop.findings()
    for name in ("lessons", "server", "interpreter", "memory", "disk", "port"):
        assert found[name].ok, found[name]
        assert not found[name].todo
    assert set(FINE) <= set(found)


def test_the_report_names_what_each_lesson_misses():
    broken = FINE | {"interpreter": Finding(False, "Triton kernels", "use Linux")}
    lines = list(_workshop.report(broken, 2.0))
    assert len(lines) == len(LESSONS) + 1
    bad = [line for line in lines if line.startswith("✗")]
    assert [re.search(r"lesson (\d\d\w?)", line)[1] for line in bad] == ["10", "11"]
    assert all(line.endswith("see Triton kernels") for line in bad)
    (first,) = [line for line in lines if "lesson 00" in line]
    assert f"about {2 * LESSONS[0].seconds} s" in first
    assert lines[-1].startswith(f"{len(LESSONS) - 2} of {len(LESSONS)} lessons run here")


def test_without_a_compiler_the_cure_is_named(monkeypatch):
    monkeypatch.setattr(_workshop.shutil, "which", lambda name: None)
    found = _workshop.compiler()
    assert not found.ok
    assert "apt-get install g++" in found.todo


def test_a_compiler_that_fails_is_no_compiler(monkeypatch, tmp_path):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho no header files >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    found = _workshop.compiler()
    assert not found.ok
    assert "no header files" in found.todo


def test_without_triton_the_machine_is_named(monkeypatch):
    monkeypatch.setattr(_workshop.importlib.util, "find_spec", lambda name: None)
    assert "Linux, WSL 2 or a container" in _workshop.interpreter().todo
    assert not _workshop.fonts().ok


def test_a_kernel_that_computes_wrongly_is_noticed(monkeypatch):
    monkeypatch.setattr(_workshop, "_KERNEL", "assert False, 'kernel is off'")
    found = _workshop.interpreter()
    assert not found.ok
    assert "kernel is off" in found.todo


def test_little_memory_disk_and_no_fonts_have_cures(monkeypatch, tmp_path):
    monkeypatch.setattr(_workshop, "memory_bytes", lambda: 2**30)
    assert "one lesson at a time" in _workshop.memory().todo
    monkeypatch.setattr(_workshop, "memory_bytes", lambda: None)
    assert _workshop.memory().ok
    monkeypatch.setattr(_workshop, "NEEDED_DISK", 2**60)
    assert not _workshop.disk(tmp_path).ok
    figures = importlib.import_module("plamo_ref.teaching.figures")  # the package has a function
    monkeypatch.setattr(figures, "japanese_font", lambda: None)
    assert "fonts-noto-cjk" in _workshop.fonts().todo


def test_loopback_that_is_closed_is_told(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError("not permitted")

    monkeypatch.setattr(_workshop.socket, "create_connection", refuse)
    found = _workshop.port()
    assert not found.ok
    assert "firewall" in found.todo


@pytest.mark.parametrize(("ok", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_the_lessons_run(monkeypatch, ok, code):
    found = FINE | {"lessons": Finding(ok, "packages for the lessons", "" if ok else "install")}
    monkeypatch.setattr(_workshop, "findings", lambda: found)
    monkeypatch.setattr(_workshop, "speed", lambda: 1.0)
    monkeypatch.setattr(doctor, "main_job", lambda: Finding(True, "generate with tiny"))
    done = CliRunner().invoke(doctor.doctor, ["--workshop"])
    assert done.exit_code == code, done.output
    assert ("✗ lesson 00" in done.output) == (not ok)
    assert all(
        line[:2] in ("✓ ", "✗ ") or "lessons run here" in line for line in done.output.splitlines()
    )
