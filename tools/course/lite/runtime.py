"""`python -m tools.course.lite.runtime build/pyodide`: as much of Pyodide as the registries have.

npm has Pyodide's Python, and pip the wheels of pure Python that its kernel begins with. Together
they start in a page without a network. What Pyodide compiled besides, numpy and matplotlib among
it, is only in its full distribution, which takes the place of this one: `make lite PYODIDE=DIR`.

Invariant: the list of packages stays Pyodide's own, but for the files that were fetched; each of
these is named with its own checksum, or the page would refuse it.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from jupyterlite_pyodide_kernel.constants import PYODIDE_PYTHON_VERSION, PYODIDE_VERSION

FIRST = ("micropip", "packaging", "ipython", "jedi")  # what a kernel loads before any cell
PURE = "-none-any.whl"


def closure(packages: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Those packages and all that they depend on."""
    found, coming = list[str](), list(names)
    while coming:
        name = coming.pop(0).replace("_", "-")
        if name not in found:
            found.append(name)
            coming += packages[name]["depends"]
    return found


def fetch(target: Path) -> None:
    """Pyodide's runtime and the first wheels, in `target`, a folder that is not there yet."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["npm", "pack", "--silent", f"pyodide@{PYODIDE_VERSION}"], cwd=folder, check=True
        )
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        shutil.move(Path(folder) / "package", target)
    lock = target / "pyodide-lock.json"
    listed = json.loads(lock.read_text(encoding="utf-8"))
    packages = listed["packages"]
    for name in closure(packages, FIRST):
        wheel = _wheel(name, packages[name]["version"], target)
        packages[name]["file_name"] = wheel.name
        packages[name]["sha256"] = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock.write_text(json.dumps(listed), encoding="utf-8")


def _wheel(name: str, version: str, target: Path) -> Path:
    before = set(target.glob(f"*{PURE}"))
    download = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--platform", "any"]
    download += ["--python-version", PYODIDE_PYTHON_VERSION, "--dest", str(target)]
    subprocess.run([sys.executable, "-m", "pip", *download, f"{name}=={version}"], check=True)
    (wheel,) = set(target.glob(f"*{PURE}")) - before
    return wheel


@click.command(help=__doc__)
@click.argument("target", type=click.Path(exists=False, path_type=Path))
def main(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    fetch(target)
    click.echo(f"{target}: Pyodide {PYODIDE_VERSION}, without what it compiled")


if __name__ == "__main__":
    main()
