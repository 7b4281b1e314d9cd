"""Every lesson as a person opens it: JupyterLab, a real browser, Run All, each slider moved.

Invariant tested: no error, every output is the one that is committed, no request off this machine,
no complaint in the browser's console, and every figure fits a laptop's width; one lesson is seen in
the light theme, the next in the dark one. What was seen is kept in build/lab. The first lesson runs
in the kernel that is installed, the others in forks of a process that has imported torch before.
"""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import psutil
import pytest
from lab_server import TOKEN, chromium, jupyter_lab
from nbformat import NotebookNode
from PIL import Image
from replayed import differences
from warm_kernels import WarmKernels, warm_kernels

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine"),
    pytest.mark.timeout(600),
]

ROOT = Path(__file__).parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KEPT = ROOT / "build" / "lab"
MOST_SECONDS = 60  # of a core, for Run All
LAPTOP, PAGE_HEIGHT = 1280, 8000
BESIDE = (150, 5000)
THEMES = ("light", "dark")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
KERNEL_IS_IDLE = """() => {
  const widget = window.jupyterapp && window.jupyterapp.shell.currentWidget;
  return widget && widget.context && widget.sessionContext.session?.kernel?.status === 'idle';
}"""
RUN_ALL = "() => window.jupyterapp.commands.execute('notebook:run-all-cells')"
SAVE = "() => window.jupyterapp.commands.execute('docmanager:save')"
FIGURES = """() => [...document.querySelectorAll('.jp-OutputArea-output')]
  .map(area => [area, area.querySelector('img, svg')])
  .filter(([area, picture]) => picture && !area.querySelector('.jupyter-widgets'))
  .map(([area, picture]) => [picture.getBoundingClientRect().width, area.clientWidth])"""
RAN = """() => window.jupyterapp.shell.currentWidget.content.widgets
  .some(cell => cell.model.type === 'code' && cell.model.executionCount > 0)"""
OPEN = "async path => { await window.jupyterapp.commands.execute('docmanager:open', {path}); }"
SET_THEME = "theme => window.jupyterapp.commands.execute('apputils:change-theme', {theme})"
# Saved first (the folder is a copy), or closing asks. The page itself stays: Lab starts once.
END = """async () => {
  const app = window.jupyterapp;
  await app.commands.execute('docmanager:save');
  await app.commands.execute('application:close');
  await app.serviceManager.sessions.shutdownAll();
}"""


@dataclass
class Seen:
    """What happened while one lesson was open."""

    run: NotebookNode = field(default_factory=NotebookNode)  # as Lab saved it after Run All
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # of the console, and of scripts
    figures: list[list[float]] = field(default_factory=list)  # width, room for it
    boxes: int = 0  # widgets, each moved once
    redrawn: list[float] = field(default_factory=list)  # heights of what they drew
    broken_widgets: int = 0
    seconds: float = 0.0  # of a core


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[tuple]:
    """One server, browser and page for all lessons, and what the page asks and complains."""
    from playwright.sync_api import sync_playwright

    root, state = tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("state")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    for path in (root / "notebooks").glob("*.ipynb"):
        write_without_outputs(path)
    shutil.copytree(ROOT / "tests" / "golden", root / "tests" / "golden")
    (root / "plamo_ref").symlink_to(ROOT / "plamo_ref")
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir(parents=True)
    with (
        warm_kernels(state / "kernels") as warm,
        jupyter_lab(root, state) as address,
        sync_playwright() as player,
    ):
        browser = player.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_context(viewport={"width": LAPTOP, "height": 1000}).new_page()
        page.set_default_timeout(300_000)
        heard: list[tuple[str, str]] = []
        page.on("request", lambda sent: heard.append(("request", sent.url)))
        page.on("pageerror", lambda error: heard.append(("complaint", str(error))))
        page.on(
            "console", lambda said: said.type == "error" and heard.append(("complaint", said.text))
        )
        page.goto(f"{address}/lab/tree/notebooks?token={TOKEN}&reset")
        page.wait_for_function("() => window.jupyterapp")
        page.evaluate("() => window.jupyterapp.restored")
        page.wait_for_selector(".jp-LauncherCard")  # a theme changed before upsets what is drawn
        yield page, heard, address, root / "notebooks", warm
        browser.close()


def write_without_outputs(path: Path) -> None:
    """So that whatever is there afterwards is what this run gave."""
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# All light ones, then all dark ones: the theme is changed once, where nothing is open.
BY_THEME = LESSONS[::2] + LESSONS[1::2]


@pytest.fixture(scope="module", params=BY_THEME, ids=lambda path: path.stem)
def lesson(request, lab) -> tuple[Path, Seen, str]:
    """A lesson, run to its end, every widget moved; and what was seen."""
    page, heard, address, notebooks, warm = lab
    seen = Seen()
    # Before the lesson is open: to dress a whole one anew takes the browser as long as to show it.
    page.evaluate(SET_THEME, f"JupyterLab {theme_of(request.param).title()}")
    page.evaluate(OPEN, f"notebooks/{request.param.name}")
    page.wait_for_function(KERNEL_IS_IDLE, polling=200)  # ms; not at every frame
    # Run All clicked too early runs nothing, silently.
    page.wait_for_selector(".jp-Spinner", state="detached")
    for _ in range(3):
        page.evaluate(RUN_ALL)
        page.wait_for_function(KERNEL_IS_IDLE, polling=200)
        if page.evaluate(RAN):
            break
    seen.seconds = _kernel_seconds(warm)
    page.evaluate(SAVE)
    seen.run = nbformat.read(notebooks / request.param.name, as_version=4)
    seen.broken_widgets = page.locator("text=Error displaying widget").count()
    seen.figures = page.evaluate(FIGURES)
    _move_widgets(page, seen)
    _keep(page, request.param, seen)
    page.evaluate(END)
    if request.param == BY_THEME[0]:
        warm.offer()
    seen.requests = [text for kind, text in heard if kind == "request"]
    seen.complaints = [text for kind, text in heard if kind == "complaint"]
    heard.clear()
    return request.param, seen, address


def _kernel_seconds(warm: WarmKernels) -> float:
    """Processor time of the one kernel that runs, its imports included."""
    mine = psutil.Process().children(recursive=True)
    kernels = [p for p in mine if "ipykernel_launcher" in " ".join(_command(p))]
    return sum(sum(p.cpu_times()[:2]) for p in kernels) + warm.seconds()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


def _move_widgets(page, seen: Seen) -> None:
    """One control of each box of `interactive`; its figure then appears below."""
    boxes = page.locator(".widget-vbox:has(.widget-image)")
    seen.boxes = boxes.count()
    for number in range(seen.boxes):
        box = boxes.nth(number)
        handle, choice = box.locator(".noUi-handle"), box.locator("select")
        assert not box.locator(".widget-image").is_visible()  # the static figure is all there is
        if handle.count():
            handle.first.focus()
            low = handle.first.get_attribute("aria-valuenow") == handle.first.get_attribute(
                "aria-valuemin"
            )
            handle.first.press("ArrowRight" if low else "ArrowLeft")
        elif choice.count():
            choice.first.select_option(index=1)
        else:
            box.locator("input[type=checkbox]").first.click()
        picture = box.locator(".widget-image")
        picture.wait_for(state="visible", timeout=60_000)
        seen.redrawn.append(picture.bounding_box()["height"])


def theme_of(path: Path) -> str:
    return THEMES[LESSONS.index(path) % len(THEMES)]


def _keep(page, path: Path, seen: Seen) -> None:
    """The whole lesson as pictures, and the numbers."""
    notebook = page.locator(".jp-WindowedPanel-outer").first
    height = notebook.evaluate("panel => panel.scrollHeight")
    page.set_viewport_size({"width": LAPTOP, "height": PAGE_HEIGHT})
    for part in range(-(-height // PAGE_HEIGHT)):
        notebook.evaluate("(panel, top) => panel.scrollTo(0, top)", part * (PAGE_HEIGHT - 200))
        file = KEPT / f"{path.stem}-{theme_of(path)}-{part}.jpg"
        page.screenshot(path=file, type="jpeg", quality=60)
    page.set_viewport_size({"width": LAPTOP, "height": 1000})
    numbers = {"seconds": seen.seconds, "figures": len(seen.figures), "widgets": seen.boxes}
    numbers |= {"cells": len(code_cells(seen.run))}
    (KEPT / f"{path.stem}.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


def test_run_all_ends_without_an_error(lesson):
    path, seen, _ = lesson
    cells, ran = code_cells(nbformat.read(path, as_version=4)), code_cells(seen.run)
    tagged = sum("raises-exception" in cell.metadata.get("tags", []) for cell in cells)
    kinds = [output.output_type for cell in ran for output in cell.outputs]
    assert kinds.count("error") <= tagged
    silent = [c.id for c, now in zip(cells, ran, strict=True) if c.outputs and not now.outputs]
    assert silent == []
    assert seen.broken_widgets == 0


def test_every_output_is_the_committed_one(lesson):
    """As strict nbval compares; see test_notebooks.py for a machine without Chromium."""
    path, seen, _ = lesson
    assert [cell.execution_count for cell in code_cells(seen.run)].count(None) == 0
    found = differences(path, seen.run)
    assert found == [], "\n\n".join(found)


def test_every_widget_is_there_and_moves(lesson):
    path, seen, _ = lesson
    sources = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    wanted = sum(
        len(re.findall(r"^\s*(?:interactive|scrub)\(", source, re.MULTILINE)) for source in sources
    )
    assert seen.boxes == wanted
    assert all(height > 100 for height in seen.redrawn)


def test_every_figure_is_there_and_fits_a_laptop(lesson):
    path, seen, _ = lesson
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    kinds = [kind for c in cells for out in c.outputs for kind in out.get("data", {})]
    assert len(seen.figures) >= sum(kind.startswith("image/") for kind in kinds)
    for width, room in seen.figures:
        assert 50 < width <= room + 1


def test_no_request_leaves_the_machine_and_the_console_is_silent(lesson):
    _, seen, address = lesson
    own = (address, address.replace("http", "ws"), "data:", "blob:")
    assert seen.requests
    assert sorted({url for url in seen.requests if not url.startswith(own)}) == []
    assert seen.complaints == []


def test_no_lesson_keeps_its_reader_waiting(lesson):
    path, seen, _ = lesson
    assert 0 < seen.seconds < MOST_SECONDS, f"{path.stem}: {seen.seconds:.0f} s of a core"


def test_what_was_seen_is_kept(lesson):
    path, _, _ = lesson
    parts = len(list(KEPT.glob(f"{path.stem}-*.jpg")))
    assert parts
    for part in range(parts):
        with Image.open(KEPT / f"{path.stem}-{theme_of(path)}-{part}.jpg") as picture:
            assert picture.size == (LAPTOP, PAGE_HEIGHT)
            # Beside the lesson, below the list of files: nothing but the theme.
            assert (picture.convert("L").getpixel(BESIDE) > 128) == (theme_of(path) == "light")
