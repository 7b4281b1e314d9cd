"""`python -m tools.course.lite build/lite`: lessons that run in a browser, as a folder to serve.

JupyterLite is JupyterLab without a server: Python itself, compiled to WebAssembly by Pyodide, runs
in the page. The folder holds Lab, the lessons' browser edition, what was recorded, and this package
as a wheel, which the first cell of a lesson installs without its dependencies: no torch.

    --pyodide DIR    Pyodide with numpy and matplotlib, as tools/course/lite/runtime.py makes it,
                     copied into the folder: then a reader's browser asks nobody else. Without it
                     the browser fetches them from the address that JupyterLite has for them.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import click
import nbformat
from nbformat.v4 import new_code_cell

from tools.course.lite.edition import write
from tools.reach import ROOT, Addresses

# Without dependencies: Pyodide has compiled those that a lesson needs, and torch is none of them.
INSTALL = """import piplite

await piplite.install(["numpy", "matplotlib", "ipywidgets"])
await piplite.install("plamo-ref", deps=False)"""


def lessons(folder: Path) -> None:
    """Everything that a reader's Lab shows."""
    for path in write(ROOT / "notebooks", folder, Addresses.read().repository):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.insert(1, new_code_cell(INSTALL, id="browser-install"))
        notebook.metadata.kernelspec = {"display_name": "Python", "name": "python"}
        nbformat.write(notebook, path)
    shutil.copytree(ROOT / "notebooks" / "recorded", folder / "recorded")


# What sliders need and Pyodide does not bring, in the versions that are installed here.
WIDGETS = ("ipywidgets", "jupyterlab_widgets", "comm")
# So that a program can press the buttons, as tests/lite/check_lite.py does.
SETTINGS = {"jupyter-lite-schema-version": 0, "jupyter-config-data": {"exposeAppInBrowser": True}}


def wheels(folder: Path) -> None:
    """This package, made of a copy, so that nothing is left in the checkout; and the widgets."""
    copy = folder.parent / "source"
    shutil.copytree(ROOT / "plamo_ref", copy / "plamo_ref", ignore=shutil.ignore_patterns("__py*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    wanted = [str(copy), *(f"{name}=={version(name)}" for name in WIDGETS)]
    _run("the wheels", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), *wanted)


def _run(what: str, *module: str, cwd: Path | None = None) -> None:
    done = subprocess.run([sys.executable, "-m", *module], cwd=cwd, check=False)
    if done.returncode:
        raise SystemExit(f"{what}: could not be made, see above")


@click.command(help=__doc__)
@click.argument("target", type=click.Path(file_okay=False, path_type=Path))
@click.option("--pyodide", type=click.Path(exists=True, path_type=Path))
def main(target: Path, pyodide: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        lessons(place / "files")
        wheels(place / "wheels")
        (place / "jupyter-lite.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
        if pyodide is not None:
            shutil.copytree(pyodide, place / "static" / "pyodide")
        given = ["--lite-dir", folder, "--contents", "files", "--piplite-wheels", "wheels"]
        given += ["--output-dir", str(target.resolve()), "--no-sourcemaps", "--force"]
        _run("the site", "jupyterlite_core", "build", *given, cwd=place)
    click.echo(f"{target}: serve it, for instance with python -m http.server -d {target}")


if __name__ == "__main__":
    main()
