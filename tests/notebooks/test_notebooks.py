"""Every lesson runs top to bottom, and every output is the one that is committed.

Invariant: strict nbval, one process a notebook, in the notebook's own folder, without network.
Where there is a browser, test_lab.py runs the lessons in it, and nbval compares what that run gave.
"""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from lab_server import chromium
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from replayed import SANITIZE, differences

from tools.course.editions import number_of

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PICTURE = {"image/png": "AAAA", "text/plain": "<Figure>"}
CELL_SECONDS, NOTEBOOK_SECONDS = 300, 900


def nbval(notebook: Path) -> subprocess.CompletedProcess[str]:
    """Run strict nbval over one notebook."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    environment["HF_HUB_OFFLINE"] = "1"
    environment.pop("MPLBACKEND", None)  # as in JupyterLab
    environment.pop("PYTEST_ADDOPTS", None)
    # Loading the plugins of all that is installed here takes longer than many a lesson.
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [
        *(sys.executable, "-m", "pytest", "-p", "nbval.plugin", "-p", "pytest_timeout"),
        *("--nbval", "--nbval-current-env"),
        *("--nbval-cell-timeout", str(CELL_SECONDS)),
        *("--nbval-sanitize-with", str(SANITIZE)),
        *("--color=no", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "testpaths="),
        *("-q", "--tb=short", "-x", f"--rootdir={notebook.parent}", str(notebook)),
    ]
    return subprocess.run(
        command,
        cwd=notebook.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=NOTEBOOK_SECONDS,
        check=False,
    )


@pytest.mark.timeout(NOTEBOOK_SECONDS + 60)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_lesson_gives_its_committed_outputs(
    notebook: Path, pytestconfig: pytest.Config
) -> None:
    if chromium() is not None and pytestconfig.option.markexpr != "not browser":
        pytest.skip("test_lab.py compares what the lesson gives in the browser")
    done = nbval(notebook)
    assert done.returncode == 0, f"{notebook.name}\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


def test_there_are_lessons() -> None:
    if not NOTEBOOKS:
        pytest.skip("notebooks/ holds no .ipynb yet")
    numbers = [number_of(path) for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers), f"two lessons with one number: {numbers}"
    assert all(number[:2].isdigit() for number in numbers), f"a lesson without a number: {numbers}"


def small_lesson(**changed: object) -> NotebookNode:
    """A lesson that was run. `changed`: other outputs of a cell, by its id."""
    outputs = {
        "text": [new_output("stream", name="stdout", text="6 blocks\n")],
        "figure": [new_output("display_data", data=PICTURE)],
        "diagram": [new_output("display_data", data={"image/svg+xml": "<svg>1</svg>"})],
        "time": [new_output("stream", name="stdout", text="0.1 s\n")],
        "quiet": [],
    }
    cells = [
        new_code_cell(
            "# NBVAL_IGNORE_OUTPUT" if name == "time" else name,
            id=name,
            outputs=changed.get(name, given),
            execution_count=1,
        )
        for name, given in outputs.items()
    ]
    return new_notebook(cells=[new_markdown_cell("# Title", id="title"), *cells])


@pytest.mark.parametrize(
    ("cell", "outputs", "complaint"),
    [
        ("text", [new_output("stream", name="stdout", text="7 blocks\n")], "7 blocks"),
        ("text", [], "Missing output"),
        ("quiet", [new_output("stream", name="stderr", text="a warning")], "Unexpected output"),
        (
            "figure",
            [new_output("display_data", data={"image/png": "BB", "text/plain": "<Figure>"})],
            "",
        ),
        ("figure", [new_output("display_data", data={"image/png": "BBBB"})], "Missing output"),
        ("quiet", [new_output("error", ename="E", evalue="v", traceback=[])], "exception"),
        ("diagram", [new_output("display_data", data={"image/svg+xml": "<svg>2</svg>"})], ""),
        ("time", [new_output("stream", name="stdout", text="0.2 s\n")], ""),
    ],
)
def test_an_output_that_is_not_the_committed_one_is_found(tmp_path, cell, outputs, complaint):
    committed = tmp_path / "01_small.ipynb"
    nbformat.write(small_lesson(), committed)
    assert differences(committed, small_lesson()) == []
    found = differences(committed, small_lesson(**{cell: outputs}))
    assert len(found) == (complaint != "")
    assert complaint in "".join(found)


def test_a_run_of_another_lesson_is_no_proof(tmp_path):
    committed = tmp_path / "01_small.ipynb"
    nbformat.write(small_lesson(), committed)
    other, shorter = small_lesson(), small_lesson()
    other.cells[1].source = "another"
    del shorter.cells[-1]
    assert "another source" in "".join(differences(committed, other))
    assert differences(committed, shorter) != []
