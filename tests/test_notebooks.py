"""Every lesson runs top to bottom, and every output is the one that is committed.

Invariant: strict nbval, one process a notebook, in the notebook's own folder, without network.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SANITIZE = Path(__file__).parent / "nbval_sanitize.cfg"
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
def test_the_lesson_gives_its_committed_outputs(notebook: Path) -> None:
    done = nbval(notebook)
    assert done.returncode == 0, f"{notebook.name}\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"


def test_there_are_lessons() -> None:
    if not NOTEBOOKS:
        pytest.skip("notebooks/ holds no .ipynb yet")
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers), f"two lessons with one number: {numbers}"
    assert all(number.isdigit() for number in numbers), f"a lesson without a number: {numbers}"
