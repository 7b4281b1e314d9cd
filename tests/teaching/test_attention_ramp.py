"""Lesson 10's solutions are the tested kernels; tests/kernels/test_lesson_kernels.py compiles them.

Invariant tested: what stands in a fold is the module's source, letter for letter.
"""

import inspect
from pathlib import Path

import nbformat
import pytest
import torch

from plamo_ref.errors import PlamoRefError
from plamo_ref.teaching.recorded import write_recorded
from tools.course.editions import exercises

pytest.importorskip("triton")

from plamo_ref.teaching.attention_ramp import kernels, shapes, timing
from plamo_ref.teaching.attention_ramp.pictures import RAMP, draw

LESSON = Path(__file__).parents[2] / "notebooks" / "10_triton_attention.ipynb"


def source(name: str) -> str:
    found = getattr(kernels, name)
    return inspect.getsource(getattr(found, "fn", found)).rstrip()


def test_the_folded_solutions_are_the_kernels_that_are_tested():
    found = exercises(nbformat.read(LESSON, as_version=4))
    assert len(found) == len(RAMP) == 7
    for exercise, (launcher, used) in zip(found, RAMP.items(), strict=True):
        assert exercise.solution == "\n\n\n".join(source(name) for name in (*used, launcher))


def test_stubs_have_the_solutions_signatures():
    for exercise in exercises(nbformat.read(LESSON, as_version=4)):
        for stub in exercise.stub.source.split("def ")[1:]:
            name = stub.split("(")[0]
            given, ours = (
                "".join(text.split(")")[0].split()).rstrip(",")
                for text in (stub, source(name).split("def ")[1])
            )
            assert given == ours


def test_inputs_fit_the_launchers():
    given = shapes.inputs("meta")
    assert list(given) == list(RAMP)
    for name, arguments in given.items():
        assert len(arguments) == len(inspect.signature(getattr(kernels, name)).parameters)


def test_without_a_gpu_there_are_recorded_times_or_the_way_to_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recorded").mkdir()
    assert timing.times({}) == []
    assert timing.COMMAND in capsys.readouterr().out
    rows = [{"kernel": "copy", "us": 2.5, "package_us": 2.25}]
    origin = {"machine": "A card", "versions": {"torch": "2"}, "command": "c", "date": "2026-01-02"}
    write_recorded(timing.NAME, rows, **origin, folder=tmp_path / "recorded")
    assert timing.times({}) == rows
    assert "recorded on A card, 2026-01-02" in capsys.readouterr().out
    with pytest.raises(PlamoRefError, match="timed on a CUDA GPU"):
        next(timing.side_by_side({}))


def test_compiled_kernels_are_not_watched(capsys):
    draw("copy")
    assert "TRITON_INTERPRET=1" in capsys.readouterr().out
