"""A lesson as a person opens it: JupyterLab, a real browser, Run All, a slider that moves."""

import shutil
from pathlib import Path

import pytest
from lab_server import TOKEN, chromium, jupyter_lab

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine"),
    pytest.mark.timeout(300),
]

ROOT = Path(__file__).parent.parent
LESSON = "01_plamo2_anatomy.ipynb"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
KERNEL_IS_IDLE = """() => {
  const widget = window.jupyterapp && window.jupyterapp.shell.currentWidget;
  return widget && widget.context && widget.sessionContext.session?.kernel?.status === 'idle';
}"""
OUTPUTS = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
  .filter(cell => cell.cell_type === 'code')
  .map(cell => cell.outputs.map(output => output.output_type))"""


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """The lesson, run to its end in a browser; with it every request and error of the page."""
    from playwright.sync_api import sync_playwright

    root, state = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("state")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    shutil.copytree(ROOT / "tests" / "golden", root / "tests" / "golden")
    with jupyter_lab(root, state) as address, sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_context(viewport={"width": 1280, "height": 1200}).new_page()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"{address}/lab/tree/notebooks/{LESSON}?token={TOKEN}&reset")
        page.wait_for_function(KERNEL_IS_IDLE, timeout=90_000)
        # Run All clicked too early runs nothing, silently.
        page.wait_for_selector(".jp-Spinner", state="detached", timeout=60_000)
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.wait_for_function(KERNEL_IS_IDLE, timeout=120_000)
        yield page, requests, address
        browser.close()


def test_run_all_ends_without_an_error(lesson):
    page, _, _ = lesson
    outputs = page.evaluate(OUTPUTS)
    assert len(outputs) > 20
    assert sum(len(cell) > 0 for cell in outputs) > 15
    assert not [kind for cell in outputs for kind in cell if kind == "error"]
    assert page.locator("text=Error displaying widget").count() == 0


def test_moving_the_slider_draws_a_new_figure(lesson):
    page, _, _ = lesson
    handle = page.locator(".noUi-handle").first
    handle.wait_for(timeout=30_000)
    handle.scroll_into_view_if_needed()
    picture = page.locator(".widget-image").first
    assert not picture.is_visible()  # the static figure above is all there is until then
    handle.focus()
    handle.press("ArrowLeft")
    picture.wait_for(state="visible", timeout=30_000)
    assert picture.bounding_box()["height"] > 100


def test_no_request_leaves_the_machine(lesson):
    _, requests, address = lesson
    own = (address, address.replace("http", "ws"), "data:", "blob:")
    assert requests
    assert sorted({url for url in requests if not url.startswith(own)}) == []
