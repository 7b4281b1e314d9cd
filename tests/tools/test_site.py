"""The static site: every page and link of the repository, in a browser without a network.

Invariant tested: a link of a page leads to a page of the site, or is refused; the site, opened as
files, draws figures and formulas, finds words, and asks nobody for anything.
"""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from lab_server import chromium

from tools.course.site.__main__ import main
from tools.course.site.sources import ROOT, Pages, SiteError, gather


def linked(text: str, page: str = "notebooks/05_paged_attention.ipynb") -> str:
    return Pages(Path("/nowhere"))._linked(text, page)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a](../docs/ledger.md#x)", "[a](../docs/ledger.md#x)"),
        ("[next](06_hybrid_cache_manager.ipynb)", "[next](06_hybrid_cache_manager.ipynb)"),
        ("[`core.py`](../plamo_ref/engine/core.py)", "[`core.py`](../plamo_ref/engine/core.py.md)"),
        ("[it](../README.md)", "[it](../index.md)"),
        ("[g](../plamo_ref/grammar)", "[g](../plamo_ref/grammar/__init__.py.md)"),
        ("[golden](../tests/golden)", "golden"),  # data: nothing to read
        ("[out](https://example.org/a)", "[out](https://example.org/a)"),
        ("[here](#ideas)", "[here](#ideas)"),
        ("`[a](../nothing.py)`", "`[a](../nothing.py)`"),
        ("```\n[a](../nothing.py)\n```", "```\n[a](../nothing.py)\n```"),
    ],
)
def test_a_link_leads_to_a_page_of_the_site(text, found):
    assert linked(text) == found


def test_a_link_to_nothing_is_refused_by_name():
    with pytest.raises(SiteError, match=r"05_paged_attention.*gone/away\.py"):
        linked("[a](gone/away.py)")


def test_every_lesson_and_page_is_in_the_menu_and_every_linked_file_is_there(tmp_path):
    gather(tmp_path)
    menu = (tmp_path / "index.md").read_text(encoding="utf-8")
    lessons = {path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert {path.name for path in tmp_path.glob("notebooks/*.ipynb")} == lessons
    assert all(f"\nnotebooks/{name}\n" in menu for name in lessons)
    for page in tmp_path.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        for to in re.findall(r"\]\(((?!https?:)[^)#\s]+)", "" if "`````" in text else text):
            assert (page.parent / to).exists(), (page, to)  # code, in five ticks, has no links


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = CliRunner().invoke(main, ["--lessons", "05,07,14", str(folder)])
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.browser
@pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")
def test_it_opens_as_files_and_asks_nobody_for_anything(site):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page, asked, said = browser.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: message.type == "error" and said.append(message.text))
        page.goto((site / "index.html").as_uri())
        page.get_by_role("link", name=re.compile("^05 · Paged")).first.click()
        assert page.locator("h1").first.inner_text().startswith("05")
        page.wait_for_load_state()  # the heading is there before the figures are
        assert page.locator("div.cell_output img, div.cell_output svg").count() > 2
        page.goto((site / "notebooks/14_several_gpus.html").as_uri())
        assert page.locator("math").count() > 5
        assert "$" not in page.locator("article p").all_inner_texts()[3]
        page.goto((site / "search.html").as_uri() + "?q=preemption")
        page.locator("ul.search li").first.wait_for()
        assert page.get_by_text("07 · Continuous batching").count() > 0
        page.goto((site / "plamo_ref/engine/core.py.html").as_uri())
        assert "class EngineCore" in page.locator("pre").inner_text()
        browser.close()
    assert not said
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
