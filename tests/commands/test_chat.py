"""`plamo-ref chat`: a conversation through a pipe."""

import io
import shutil
import sys
from pathlib import Path

import pytest

from plamo_ref import LLM, Plamo2Tokenizer
from plamo_ref.cli import main
from plamo_ref.intake.hub import find

GOLDEN = Path(__file__).parents[1] / "golden" / "c1_1b_like"


def converse(monkeypatch, capsys, text, *options):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    code = main(["chat", "--max-tokens", "6", "--temperature", "0", *options])
    return code, capsys.readouterr()


def test_each_line_gets_an_answer_that_depends_on_the_conversation(monkeypatch, capsys):
    code, said = converse(monkeypatch, capsys, "吾輩は猫である。\n名前は?\n/quit\nnever read\n")
    assert code == 0
    both = said.out.splitlines()
    _, alone = converse(monkeypatch, capsys, "吾輩は猫である。\n")
    assert said.err == ""
    assert said.out.startswith(alone.out.rstrip("\n"))
    assert len(both) >= 2


def test_reset_forgets_what_was_said(monkeypatch, capsys):
    _, first = converse(monkeypatch, capsys, "To be\n")
    _, again = converse(monkeypatch, capsys, "something else\n/reset\nTo be\n")
    assert again.out.endswith(first.out)


def test_a_base_model_without_a_template_is_refused_in_one_line(monkeypatch, capsys, tmp_path):
    folder = shutil.copytree(GOLDEN, tmp_path / "base")
    code, said = converse(monkeypatch, capsys, "hello\n", "--model", str(folder))
    assert code == 2
    assert "without a chat template" in said.err
    assert "Traceback" not in said.err


def test_a_template_file_is_used_and_a_missing_one_named(monkeypatch, capsys, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages[-1].content }}")
    code, said = converse(monkeypatch, capsys, "abc\n", "--chat-template", str(file))
    assert code == 0
    assert said.out.strip()
    code, said = converse(monkeypatch, capsys, "abc\n", "--chat-template", "nowhere.jinja")
    assert code == 2
    assert "nowhere.jinja" in said.err


def test_a_template_whose_turns_end_with_a_control_token_stops_at_it(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(LLM, "stream", lambda self, ids, params: iter(seen.append(params) or ()))
    code, _ = converse(monkeypatch, capsys, "hello\n", "--chat-template", "translate")
    token = Plamo2Tokenizer.from_folder(find("tiny")).id_of("<|plamo:op|>")
    assert (code, [list(params.stop_token_ids) for params in seen]) == (0, [[token]])


@pytest.mark.parametrize("line", ["", "\n\n"])
def test_silence_is_answered_with_silence(monkeypatch, capsys, line):
    assert find("tiny").is_dir()
    code, said = converse(monkeypatch, capsys, line)
    assert (code, said.out) == (0, "")
