"""The lessons that need no torch, where there is none: in a browser.

Invariant tested: a cell that is not tagged `torch` imports none, not by anything that it imports,
and prints what is committed, the facts of its figures included; a tagged one shows what it gave.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tools.course.editions import tags
from tools.course.lite.edition import TOLD, TORCH, browser, lessons

HERE = Path(__file__).parent
LESSONS = lessons(HERE.parents[1] / "notebooks")
IGNORED = "# NBVAL_IGNORE_OUTPUT"


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(sources: list[list[str]]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / "without_torch.py")],
        input=json.dumps(sources),
        cwd=HERE.parents[1] / "notebooks",
        env={**os.environ, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def committed() -> list[NotebookNode]:
    return [nbformat.read(path, as_version=4) for path in LESSONS]


def test_all_that_runs_in_a_browser_prints_what_is_committed(committed):
    editions = [browser(notebook) for notebook in committed]
    done = run([[cell.source for cell in code(edition)] for edition in editions])
    assert done.returncode == 0, done.stderr[-3000:]
    for notebook, edition, texts in zip(committed, editions, json.loads(done.stdout), strict=True):
        stored = {cell.id: cell for cell in code(notebook)}
        for cell, text in zip(code(edition), texts, strict=True):
            if not cell.source.startswith(IGNORED):
                said = [o.text for o in stored[cell.id].outputs if o.output_type == "stream"]
                assert text == "".join(said), (notebook.cells[0].source[:40], cell.id)


def test_most_of_each_lesson_runs_in_a_browser(committed):
    assert [path.name[:2] for path in LESSONS] == ["05", "06", "07", "08", "09"]
    for notebook in committed:
        needing = sum(TORCH in tags(cell) for cell in code(notebook))
        assert needing <= 0.35 * len(code(notebook)), notebook.cells[0].source[:40]


def test_a_cell_that_pulls_torch_in_is_found():
    done = run([["print(1)", "from plamo_ref import LLM"]])
    assert done.returncode != 0
    assert "LLM needs torch" in done.stderr
    assert "in the cell\nfrom plamo_ref import LLM" in done.stderr


def test_what_needs_torch_shows_what_it_gave():
    outputs = [
        new_output("stream", name="stdout", text="6 blocks\n"),
        new_output("display_data", data={"image/svg+xml": "<svg/>", "text/plain": "<figure>"}),
        new_output("display_data", data={"image/png": "AA==\n", "text/plain": "<figure>"}),
    ]
    cell = new_code_cell("import torch", id="with-torch", outputs=outputs)
    cell.metadata["tags"] = [TORCH]
    edition = browser(new_notebook(cells=[cell, new_code_cell("1", id="plain")]))
    nbformat.validate(edition)
    told, plain = edition.cells
    assert (told.cell_type, told.id, plain.cell_type) == ("markdown", "with-torch", "code")
    assert told.source.startswith(TOLD)
    for part in ("import torch", "6 blocks", "attachment:figure0.svg", "attachment:figure1.png"):
        assert part in told.source
    assert told.attachments["figure0.svg"] == {"image/svg+xml": "PHN2Zy8+"}
    assert told.attachments["figure1.png"] == {"image/png": "AA=="}
    assert "<figure>" not in told.source
