"""The slides: cells as they were executed, no solution, no network, keys that turn pages."""

import re
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from lab_server import chromium

from tools.course import slides

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def half_day(tmp_path_factory) -> tuple[Path, int]:
    target = tmp_path_factory.mktemp("slides") / "half-day.html"
    return target, slides.write(ROOT, "half-day", target)


def test_a_cut_has_the_title_of_each_of_its_lessons_and_no_other(half_day):
    target, count = half_day
    text = target.read_text(encoding="utf-8")
    titles = re.findall(r"<h1[^>]*>(\d\d\w?) ", text)
    assert tuple(titles) == slides.HALF_DAY
    assert text.count("<section>") == count > 50


def test_slides_ask_nobody_and_tell_no_solution(half_day):
    text = half_day[0].read_text(encoding="utf-8")
    assert not re.search(r"<(script|img|link|iframe)[^>]+(src|href)=\"(?!data:)", text)
    assert "@import" not in text
    assert "<summary>" not in text
    for number in slides.HALF_DAY:
        (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
        for cell in nbformat.read(path, as_version=4).cells:
            if "solution" in cell.metadata.get("tags", []):
                code = re.search(r"```python\n(.*?)```", cell.source, re.DOTALL)[1]
                assert max(code.splitlines(), key=len).strip() not in text


def test_a_heading_in_a_code_fence_is_none():
    found = list(
        slides._headed("intro\n\n## 1. One\n\ntext\n\n```\n# comment\n```\n\n### Two\n\nend")
    )
    assert [slide.heading for slide in found] == ["## 1. One", "### Two"]
    assert "# comment" in found[0].text
    assert found[1].text == "end"
    assert list(slides._headed("no heading")) == []


def test_the_command_writes_every_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(slides.main, [str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert sorted(p.stem for p in tmp_path.glob("*.html")) == sorted(slides.CUTS)


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_keys_turn_pages_in_a_browser_without_a_request(half_day):
    from playwright.sync_api import sync_playwright

    target, count = half_day
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page, asked, said = browser.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: message.type == "error" and said.append(message.text))
        page.goto(target.as_uri())
        shown = page.locator("section.now")
        assert shown.locator("h1").inner_text().startswith("01 ")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowLeft")
        assert page.locator("#where").inner_text() == f"2 / {count}"
        page.keyboard.press("End")
        assert page.locator("#where").inner_text() == f"{count} / {count}"
        assert shown.count() == 1
        assert {url for url in asked if not url.startswith(("file:", "data:"))} == set()
        assert said == []
        browser.close()
