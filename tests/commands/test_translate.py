"""`plamo-ref translate`: a document through a pipe or a file.

The embedded model cannot translate: what is looked at is what becomes of whatever it says.
"""

import io
import sys

import pytest

from plamo_ref.cli import main
from plamo_ref.translation import TranslatedPiece, Translator

SMALL = ("--model", "tiny", "--device", "cpu", "--memory-bytes", "8MB", "--max-num-seqs", "4")


@pytest.fixture
def scripted(monkeypatch):
    """A translator that shouts, and finds no end of what is bad."""

    def stream(self, document):
        before, pieces = self.pieces(document)
        for text, after in pieces:
            bad = (text,) if "bad" in text else ()
            said = text if bad else text.upper()
            yield TranslatedPiece(text, before + said + after, 1 + 2 * len(bad), bad, 9, 5)
            before = ""

    monkeypatch.setattr(Translator, "stream", stream)


def test_a_document_is_translated_by_the_engine_itself(capsys, tmp_path):
    file = tmp_path / "text"
    file.write_text("吾輩は猫である。\n\n名前はまだ無い。\n", encoding="utf-8")
    code = main(["translate", str(file), *SMALL, "--from", "Japanese", "--to", "English"])
    said = capsys.readouterr()
    assert code in (0, 1)
    assert said.out.endswith("\n")
    assert "\n\n" in said.out
    assert "2 pieces, 19 characters in" in said.err
    assert (code == 1) == ("not translated: " in said.err)


def test_standard_input_and_line_ends_of_windows(monkeypatch, capsys, scripted):
    pipe = io.TextIOWrapper(io.BytesIO("\ufeffone\r\n\r\ntwo".encode()))
    monkeypatch.setattr(sys, "stdin", pipe)
    assert main(["translate", "-", *SMALL, "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out == "ONE\n\nTWO"
    assert said.err == ""


def test_what_has_no_translation_is_named_and_kept(capsys, tmp_path, scripted):
    file, result = tmp_path / "text", tmp_path / "result"
    file.write_text("good\n\nbad " + 100 * "x" + "\n\ngood\n")
    assert main(["translate", str(file), *SMALL, "-o", str(result)]) == 1
    assert result.read_text() == "GOOD\n\nbad " + 100 * "x" + "\n\nGOOD\n"
    said = capsys.readouterr()
    assert said.out == ""
    assert "3 pieces" in said.err
    assert "1 tried again" in said.err
    (line,) = [line for line in said.err.splitlines() if line.startswith("not translated: bad xxx")]
    assert len(line) <= 100


def test_an_interrupt_keeps_what_is_ready(tmp_path, monkeypatch, scripted):
    stream = Translator.stream

    def interrupted(self, document):
        pieces = stream(self, document)
        yield next(pieces)
        raise KeyboardInterrupt

    monkeypatch.setattr(Translator, "stream", interrupted)
    file, result = tmp_path / "text", tmp_path / "result"
    file.write_text("one\n\ntwo\n")
    assert main(["translate", str(file), *SMALL, "-o", str(result)]) == 130
    assert result.read_text() == "ONE\n\n"


def test_a_file_is_not_its_own_translation_and_must_be_text(capsys, tmp_path):
    file = tmp_path / "text"
    file.write_bytes(b"\xff\xfe\x00")
    assert main(["translate", str(file), "-o", str(file), *SMALL]) == 2
    assert "name another file" in capsys.readouterr().err
    assert main(["translate", str(file), *SMALL]) == 2
    assert "is not UTF-8" in capsys.readouterr().err
    assert file.read_bytes() == b"\xff\xfe\x00"
    assert main(["translate", str(tmp_path / "nowhere"), *SMALL]) == 2
    assert "nowhere" in capsys.readouterr().err
