"""nbval's strict comparison for a lesson that has been run already, so that nothing runs it twice.

Invariant: for each code cell, in order, nbval is told the outputs that the cell had in that run.
"""

import contextlib
import io
import os
from pathlib import Path
from unittest import mock

import nbformat
import pytest
from nbformat import NotebookNode

SANITIZE = Path(__file__).parent / "nbval_sanitize.cfg"


class ReplayedKernel:
    """Answers as a kernel does, from the cells of a notebook that was run."""

    def __init__(self, run: NotebookNode) -> None:
        self._cells = [cell for cell in run.cells if cell.cell_type == "code"]
        self._messages: list[dict] = []
        self._number = 0

    def is_alive(self) -> bool:
        return True

    def stop(self) -> None:
        pass

    def execute_cell_input(self, source: str, *, allow_stdin: bool) -> str:
        cell = self._cells[self._number]
        assert cell.source == source, f"cell {cell.id} was run with another source"
        self._number += 1
        parent = {"msg_id": cell.id}
        pairs = [(output.output_type, output) for output in cell.outputs]
        pairs.append(("status", {"execution_state": "idle"}))
        self._messages = [
            {"msg_type": kind, "content": content, "parent_header": parent}
            for kind, content in pairs
        ]
        return cell.id

    def await_reply(self, msg_id: str, timeout: float) -> None:
        pass

    def await_idle(self, msg_id: str, timeout: float) -> None:
        pass

    def get_message(self, stream: str, timeout: float) -> dict:
        return self._messages.pop(0)


class Replay:
    """A plugin: gives nbval's one notebook that kernel, and keeps what nbval complains of."""

    def __init__(self, run: NotebookNode) -> None:
        self.run, self.compared, self.complaints = run, 0, []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        (notebook,) = {item.parent for item in items}

        def setup() -> None:
            notebook.kernel = ReplayedKernel(self.run)
            notebook.setup_sanitize_files()

        notebook.setup = setup

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.compared += report.when == "call"
        if report.failed:
            self.complaints.append(report.longreprtext)


def differences(committed: Path, run: NotebookNode) -> list[str]:
    """What strict nbval says of outputs that are not the committed ones, cell by cell.

    Args:
        run: the same notebook after it was run somewhere.
    """
    replay = Replay(run)
    said = io.StringIO()
    options = ["-p", "nbval.plugin", "--nbval", "--nbval-sanitize-with", str(SANITIZE)]
    for plugin in ("cacheprovider", "faulthandler", "unraisableexception", "threadexception"):
        options += ["-p", f"no:{plugin}"]
    options += ["--capture=no", "--color=no", "-c", os.devnull, f"--rootdir={committed.parent}"]
    with (
        mock.patch.dict(os.environ, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}),
        contextlib.redirect_stdout(said),
    ):
        pytest.main([*options, str(committed)], plugins=[replay])
    cells = nbformat.read(committed, as_version=4).cells
    assert replay.compared == sum(cell.cell_type == "code" for cell in cells), said.getvalue()
    return replay.complaints
