"""One click: what stands in the texts and files follows from the addresses, and the files are true.

Invariant tested: no address is named but in pyproject.toml; without one there is no link; the
devcontainer, Binder and Colab use the Python, the extras and the commands that the project has.
"""

import json
import os
import re
import subprocess
import tomllib

import nbformat
import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tools.course.editions import number_of
from tools.course.site.sources import gather
from tools.marks import fill
from tools.reach import COLAB, GPU_LANE, ROOT, AddressError, Addresses, colab, made, readme

PUBLIC = Addresses.of(
    {"Repository": "https://github.com/somebody/plamo-ref/", "Site": "https://example.org/it"}
)
NOBODY = Addresses()
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def extras(text: str) -> set[str]:
    return {name for found in re.findall(r"\.\[([\w,-]+)\]", text) for name in found.split(",")}


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["github.com/a/b", "https://github.com/a", "https://a.org/b/c"])
def test_an_address_where_nobody_looks_is_refused(url):
    with pytest.raises(AddressError, match="OWNER/NAME"):
        Addresses.of({"Repository": url})
    with pytest.raises(AddressError, match="https://"):
        Addresses.of({"Site": "http://a.org"})


def test_without_an_address_there_is_no_link_and_nothing_for_colab():
    assert readme(NOBODY, LESSONS) == ""
    assert [NOBODY.of_lesson(path) for path in LESSONS] == [[] for _ in LESSONS]
    assert [path.name for path, _ in made(NOBODY)] == ["README.md"]


def test_each_lesson_is_offered_where_it_runs():
    of = {number_of(path): dict(PUBLIC.of_lesson(path)) for path in LESSONS}
    assert [n for n in of if "Colab, with a GPU" in of[n]] == list(GPU_LANE)
    assert [n for n in of if "in this browser" in of[n]] == ["05", "06", "07", "08", "09"]
    assert all("Binder" in links for links in of.values())
    assert of["05"]["in this browser"] == (
        "https://example.org/it/lite/lab/index.html?path=05_paged_attention.ipynb"
    )
    assert of["10"]["Colab, with a GPU"].endswith(
        "/github/somebody/plamo-ref/blob/main/colab/10_triton_attention.ipynb"
    )


def test_the_readme_lists_them():
    text = readme(PUBLIC, LESSONS)
    assert "codespaces.new/somebody/plamo-ref" in text
    places = dict(line[2:].split(": ", 1) for line in text.splitlines() if ": [" in line)
    assert {place: links.count("](") for place, links in places.items()} == {
        "Binder": len(LESSONS),
        "Colab, with a GPU": len(GPU_LANE),
        "in this browser": 5,
    }


def test_what_is_committed_follows_from_the_committed_addresses():
    files = dict(made(Addresses.read()))
    assert all(path.read_text(encoding="utf-8") == text for path, text in files.items()), (
        "make badges"
    )
    assert set(ROOT.glob(f"{COLAB}/*")) == set(files) - {ROOT / "README.md"}


def test_no_other_file_names_the_projects_address():
    """Links that follow from it stand between the marks of README.md and in colab/."""
    address = Addresses.read().name or "somebody/plamo-ref"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    may = {"README.md", "pyproject.toml", "tests/tools/test_reach.py"}
    for name in listed.splitlines():
        if name not in may and not name.startswith(COLAB) and (ROOT / name).is_file():
            assert address.encode() not in (ROOT / name).read_bytes(), name
    outside = fill((ROOT / "README.md").read_text(encoding="utf-8"), "badges", "")
    assert address not in outside


def test_pages_of_lessons_say_where_to_run_them(tmp_path):
    gather(tmp_path / "with", ["05", "10"], PUBLIC)
    gather(tmp_path / "without", ["05", "10"], NOBODY)
    name = "notebooks/10_triton_attention.ipynb"
    assert "colab.research" in (tmp_path / "with" / name).read_text(encoding="utf-8")
    assert "colab.research" not in (tmp_path / "without" / name).read_text(encoding="utf-8")


# --- the files ------------------------------------------------------------------------------------


def test_the_devcontainer_has_a_python_and_a_command_of_the_project():
    made_of = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    (version,) = re.fullmatch(r"python:(3\.\d+)", made_of["image"]).groups()
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.0")
    stamp = re.fullmatch(r"make \.venv/\.installed-(\w+)", made_of["onCreateCommand"])
    assert stamp[1] in PROJECT["optional-dependencies"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\nVENV := .venv\n" in makefile
    assert "\n$(VENV)/.installed-%: $(VENV)/.installed\n" in makefile
    python = made_of["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert python.endswith("/.venv/bin/python")


def test_binder_begins_with_the_same_python_and_pins_nothing_else():
    binder, own = (
        yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
        for name in ("binder/environment.yml", "environment.yml")
    )
    (version,) = [each for each in own["dependencies"] if str(each).startswith("python=")]
    assert binder["dependencies"] == [version, "pip"]
    assert binder["channels"] == own["channels"]


def test_binder_installs_the_project_by_its_own_pins():
    script = ROOT / "binder" / "postBuild"
    text = script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)
    assert extras(text) <= set(PROJECT["optional-dependencies"])
    assert len(extras(text)) == 2
    assert not re.search(r"[=<>]=", text)
    assert (ROOT / "plamo_ref" / "commands" / "doctor.py").is_file()
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_colab_installs_the_clone_and_looks_at_the_machine_before_the_lesson():
    (path,) = [path for path in LESSONS if number_of(path) == "10"]
    notebook = nbformat.read(path, as_version=4)
    edition = colab(notebook, PUBLIC)
    nbformat.validate(edition)
    install, doctor, *lesson = edition.cells
    assert (
        "git clone --quiet --depth 1 https://github.com/somebody/plamo-ref plamo-ref"
        in install.source
    )
    assert "%pip install --quiet .." in install.source  # by the pins of the clone
    assert doctor.source == "!plamo-ref doctor"
    assert [cell.id for cell in lesson] == [cell.id for cell in notebook.cells]
    assert not any(cell.get("outputs") for cell in edition.cells)


def test_what_colab_is_given_is_written_for_a_public_repository(tmp_path):
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "notebooks" / "10_x.ipynb")
    (tmp_path / "README.md").write_text("a\n<!-- badges -->\n<!-- end -->\n", encoding="utf-8")
    files = {path.relative_to(tmp_path).as_posix(): text for path, text in made(PUBLIC, tmp_path)}
    assert set(files) == {"README.md", f"{COLAB}/10_x.ipynb"}
    assert f"blob/main/{COLAB}/10_x.ipynb" in files["README.md"]
