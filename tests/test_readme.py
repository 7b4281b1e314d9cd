"""README.md says what is so: links, the five lines, the ledger."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from tools.ledger import END, START, ledger, replace_ledger

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_lesson_is_in_the_table():
    there = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(re.findall(r"\(notebooks/(\d\d_\w+\.ipynb)\)", README)) == there


def test_the_five_lines_run():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code[1], {})
    assert said.getvalue().startswith("吾輩は")
    assert "\nTo be, or" in said.getvalue()


def test_the_ledger_is_what_the_recorded_results_say():
    assert replace_ledger(README, ledger(ROOT / "notebooks" / "recorded")) == README


def test_a_file_without_a_place_for_the_ledger_is_refused():
    with pytest.raises(ValueError, match="no place for the ledger"):
        replace_ledger("# nothing here", "table")
    assert replace_ledger(f"a\n{START}\nold\n{END}\nb", "new") == f"a\n{START}\nnew\n{END}\nb"
