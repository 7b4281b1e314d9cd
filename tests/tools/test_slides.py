"""The slides: every deck of every lesson, what stands in it, and how it looks in a browser.

Invariant tested: each step shows code, each exercise has its clock, nothing leaves the screen, no
solution is told, nobody is asked for anything; the lesson's text is in the notes.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import nbformat
import pytest
from click.testing import CliRunner
from lab_server import chromium
from nbformat.v4 import new_code_cell, new_output

from tools.course.editions import exercises, student
from tools.course.slides import cells, cuts, deck, layout, lesson, prose
from tools.course.slides.__main__ import main
from tools.course.slides.cells import Code, Said
from tools.course.slides.page import page

ROOT = Path(__file__).parents[2]
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
NAMES = [path.stem for path in LESSONS]


class Deck:
    """A deck, as slides and as written."""

    def __init__(self, path: Path) -> None:
        self.lesson = lesson.read(ROOT, path)
        self.slides = deck.deck(self.lesson)
        self.html = page(self.lesson.parts[0].title.partition(":")[0], self.slides)

    def of(self, part: lesson.Part) -> list[layout.Slide]:
        return [slide for slide in self.slides if slide.heading.endswith(part.title)]


class Words(HTMLParser):
    """The text of a page of HTML, as words without blanks between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._found: list[str] = []
        self.feed(text)
        self.text = "".join("".join(self._found).split())

    def handle_data(self, data: str) -> None:
        self._found.append(data)


@pytest.fixture(scope="module")
def decks() -> dict[str, Deck]:
    return {path.stem: Deck(path) for path in LESSONS}


@pytest.fixture(scope="module")
def folder(decks, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("slides")
    for name, each in decks.items():
        (target / f"{name}.html").write_text(each.html, encoding="utf-8")
    timetables = (ROOT / "course/timetables.md").read_text(encoding="utf-8")
    for title, days in cuts.cuts(timetables).items():
        text = page(title, deck.numbered(cuts.slides_of(title, days)))
        (target / f"{title}.html").write_text(text, encoding="utf-8")
    return target


# --- all decks ------------------------------------------------------------------------------------


def test_a_deck_begins_with_title_and_agenda_and_ends_with_what_was_built(decks):
    for name, each in decks.items():
        headings = [slide.heading for slide in each.slides]
        assert headings[0] == each.lesson.parts[0].title.partition(":")[0]
        assert headings[1:3] == ["要約", "Agenda"]
        assert headings.index("2. Predict first") == 3, name
        asked = [b for s in each.slides if s.heading == "2. Predict first" for b in s.boxes]
        assert any(
            "**" in b.markdown and "?" in b.markdown for b in asked if hasattr(b, "markdown")
        )
        assert headings[-1] == "What we have built"
        last = " ".join(b.markdown for b in each.slides[-1].boxes)
        assert "**Next:**" in last
        assert "`plamo_ref/" in last
        agenda = each.slides[2].boxes[0].markdown
        assert all(f"| {label} | {n} |" in agenda for label, n in each.lesson.page.minutes)


def test_every_step_shows_code_and_most_show_a_definition(decks):
    steps = [(each, part) for each in decks.values() for part in each.lesson.parts
             if part.title.startswith("Step ")]  # fmt: skip
    without, defined = [], 0
    for each, part in steps:
        shown = [box for slide in each.of(part) for box in slide.boxes if isinstance(box, Code)]
        without += [] if shown else [(each.lesson.number, part.title)]
        defined += any(box.defines for box in shown)
    assert without == []
    assert defined > 0.8 * len(steps)


def test_every_exercise_has_a_clock_with_its_own_minutes_and_notes_that_help(decks):
    for each in decks.values():
        asked = [part for part in each.lesson.parts if part.exercise]
        assert len(asked) == len(each.lesson.help)
        for part in asked:
            (turn,) = (slide for slide in each.of(part) if slide.kind == "turn")
            minutes = int(re.search(r"up to (\d+) min", part.text)[1])
            clocks = [box.minutes for box in turn.boxes if isinstance(box, layout.Clock)]
            assert clocks == [minutes], part.title
            known = each.lesson.help[part.exercise]
            assert len(known.hints) == 2
            assert len(known.mistakes) >= 3
            assert all(hint in turn.notes for hint in known.hints)
            assert turn.notes.count("<li>") >= 5


def test_a_quiz_shows_all_options_and_keeps_the_reasons_for_the_speaker(decks):
    for each in decks.values():
        asked = [slide for slide in each.slides if slide.heading.startswith("Quiz, question ")]
        assert len(asked) == len(each.lesson.quiz) == 3
        for slide, question in zip(asked, each.lesson.quiz, strict=True):
            shown = " ".join(box.markdown for box in slide.boxes)
            assert all(option.text in shown for option in question.options)
            assert all(option.why not in shown for option in question.options)
            assert slide.notes.count("✗") == len(question.options) - 1


def test_headings_are_told_apart_and_have_no_mark_of_an_anchor(decks):
    for name, each in decks.items():
        titles = [(s.heading, s.count) for s in each.slides if s.kind != "pause"]
        assert len(set(titles)) == len(titles)
        assert "¶" not in each.html, name
        sections = each.html.split("<section")[1:]
        assert [len(re.findall(r"<h[12][ >]", section)) for section in sections] == [1] * len(
            each.slides
        )


def test_a_picture_says_what_it_shows_and_can_be_read(decks):
    small = []
    for each in decks.values():
        for slide in each.slides:
            if slide.picture:
                assert len(slide.picture.alt) > 10
                # Higher than the screen, or as wide: nothing can make those larger.
                full = min(layout.WIDTH / slide.picture.width, layout.HEIGHT / slide.picture.height)
                small += [] if slide.scale > 0.95 * min(1, full) else [slide.heading]
    assert small == []


def test_the_whole_text_of_a_lesson_is_in_the_notes(decks):
    for each in decks.values():
        notes = Words("".join(slide.notes for slide in each.slides)).text
        for part in each.lesson.parts[1:]:
            if part.section.startswith(("1. Set", each.lesson.parts[-1].section)):
                continue
            text = re.sub(r"^difficulty .*$", "", part.text, flags=re.MULTILINE)
            for block in prose.blocks(text):
                words = Words(prose.html(block)).text
                assert words in notes, (part.title, block)


def test_slides_ask_nobody_and_tell_no_solution(decks):
    for path, each in zip(LESSONS, decks.values(), strict=True):
        assert not re.search(r"<(script|img|link|iframe)[^>]+(src|href)=\"(?!data:)", each.html)
        assert "@import" not in each.html
        assert "<summary>" not in each.html
        text = Words(each.html).text
        edition = student(nbformat.read(path, as_version=4))
        given = "".join("\n".join(cell.source for cell in edition.cells).split())
        for exercise in exercises(nbformat.read(path, as_version=4)):
            lines = ("".join(line.split()) for line in exercise.solution.splitlines())
            assert max((line for line in lines if line not in given), key=len) not in text


# --- parts ----------------------------------------------------------------------------------------


def test_a_heading_in_a_code_fence_is_none():
    found = lesson.headed("intro\n\n## 1. One\n\ntext\n\n```\n# comment\n```\n\n### Two\n\nend")
    assert [(level, title) for level, title, _ in found] == [(0, ""), (2, "1. One"), (3, "Two")]
    assert [found[0][2], found[2][2]] == ["intro", "end"]
    assert "# comment" in found[1][2]


def test_sentences_are_whole():
    text = (
        "One `a. B` (see e.g. Two. And three.) Four **five.** Six = 1. Seven $x. Y$? *Eight.* Nine"
    )
    assert prose.sentences(text) == [
        "One `a. B` (see e.g. Two. And three.)",
        "Four **five.**",
        "Six = 1. Seven $x. Y$?",
        "*Eight.*",
        "Nine",
    ]
    assert prose.sentences("Look. (With a live kernel, move it. Or not.) Then go.") == [
        "Look.",
        "Then go.",
    ]


def test_a_long_text_keeps_its_first_sentence_what_is_bold_and_what_leads_on():
    text = (
        "First of all. Then more words than fit here. A **bold** one. Much more of this. And now:"
    )
    assert prose.gist(text, 45) == ["First of all. A **bold** one. And now:"]
    assert prose.gist(text, 500) == [text]
    assert prose.gist("Before.\n\n- a list\n- whole", 0) == ["- a list\n- whole"]


def shown(source: str, printed: str = "", **metadata: object) -> list:
    outputs = [new_output("stream", name="stdout", text=printed)] if printed else []
    return cells.shown(new_code_cell(source, id="it", outputs=outputs, metadata=metadata))


DEFINES = (
    "import torch\n\n\ndef f(x):\n    return x\n\n\ndef draw_it():\n    figure(1)\n\n\ncheck(1, 1)"
)


def test_definitions_are_shown_without_imports_checks_and_drawing():
    assert shown(DEFINES, "✓ fine\n") == [
        Code("def f(x):\n    return x", True),
        Said("✓ fine", True),
    ]
    assert shown("x = 1\nprint(x)", "1\n") == [Code("x = 1\nprint(x)", False), Said("1", False)]
    assert shown("x = 1\ncheck('x', x, 1)", "✓ x\n") == [Said("✓ x", True)]
    assert shown("x = 1") == []
    assert shown(DEFINES, slideshow={"slide_type": "skip"}) == []


def test_of_long_definitions_the_named_ones_are_shown_or_it_is_refused():
    methods = "\n\n".join(f"    def m{i}(self):\n        return {i}" for i in range(7))
    source = f"class A:\n    x = 1\n\n{methods}\n\n\ndef g():\n    return 2"
    with pytest.raises(lesson.SlideError, match=r"cell it: 26 lines.*slides.*show"):
        shown(source)
    with pytest.raises(lesson.SlideError, match=r"\['h'\], it defines \['A', "):
        shown(source, slides={"show": ["h"]})
    (code,) = shown(source, slides={"show": ["A.m1", "A.m2"]})
    one, two = ("    def m1(self):\n        return 1", "    def m2(self):\n        return 2")
    assert code.source == f"class A:\n    …\n\n{one}\n\n{two}"
    assert shown(source, slides={"show": ["g"]}) == [Code("def g():\n    return 2", True)]


def test_much_output_is_cut_and_says_so():
    (said,) = (b for b in shown("print(x)", "line\n" * 40) if isinstance(b, Said))
    assert said.lines[-1] == "… and 26 lines more in the lesson"
    assert len(said.lines) == cells.MOST_SAID + 1


TIMETABLE = """# Timetables

## Half a day

| time | min | what | in class | left out |
|---|---|---|---|---|
| 09:00 | 6 | welcome; coffee |  |  |
| 09:06 | 37 | [01 · Anatomy](lessons/01_anatomy.md) | step 1 | exercise 2 |
| 09:43 | 15 | break |  |  |
| 09:58 | 40 | [03 · Mixer](lessons/03_mixer.md) |  |  |
| 10:38 | **98** | end | | |

## Two days

### Day 1

| 09:00 | 30 | [00 · Map](lessons/00_map.md) |  |  |

### Day 2

| 09:30 | 60 | lunch |  |  |
"""


def test_a_cut_has_the_times_the_decks_and_breaks_with_a_clock():
    half, two = cuts.cuts(TIMETABLE).items()
    slides = cuts.slides_of(*half)
    assert [slide.heading for slide in slides] == [
        "Half a day", "Welcome; coffee", "01 · Anatomy", "Break", "03 · Mixer",
    ]  # fmt: skip
    assert "| 09:06 | 01 · Anatomy |" in slides[0].boxes[0].markdown
    assert 'href="01_anatomy.html?without=exercise%202"' in page("x", deck.numbered(slides))
    assert [slide.count for slide in deck.numbered([slides[3], slides[3]])] == [(1, 1), (1, 1)]
    assert [b for b in slides[3].boxes if isinstance(b, layout.Clock)] == [layout.Clock(15)]
    assert "**09:58** with **03 · Mixer**" in slides[3].boxes[0].markdown
    assert list(two[1]) == ["Day 1", "Day 2"]
    assert [s.heading for s in cuts.slides_of(*two)][::2] == ["Two days, Day 1", "Two days, Day 2"]


def test_what_a_cut_leaves_out_has_its_name_on_the_slides(decks):
    for text in cuts.cuts((ROOT / "course/timetables.md").read_text(encoding="utf-8")).values():
        for entry in (entry for day in text.values() for entry in day if entry.stem):
            each = decks[entry.stem]
            names = {slide.part for slide in each.slides} | {slide.row for slide in each.slides}
            rows = [label for label, _ in each.lesson.page.minutes]
            for item in filter(None, entry.left.split("; ")):
                kind, _, some = item.partition(" ")
                if kind in ("step", "steps", "exercise", "exercises"):
                    wanted = {f"{kind.removesuffix('s')} {n}" for n in some.split(", ")}
                    assert wanted <= names, (entry.stem, item)
                else:  # a row that shares its section with another one leaves its slides there
                    assert item in rows, (entry.stem, item)


def test_sizes_are_balanced_and_a_check_stands_under_what_it_checks():
    long = [layout.Prose("word " * 60), Code("x = 1\n" * 11 + "x = 2", defines=False)]
    code, words = layout.fitting(long, layout.WIDTH, layout.HEIGHT)
    assert min(code, words) >= 22
    one = layout.Slide("Step 1", [Code("def f(x):\n    return x", defines=True)], notes="<p>a</p>")
    said = [layout.Prose("Held against the definition:"), Said("✓ equal", verdict=True)]
    assert layout.joined(one, layout.Slide("Step 1", said))
    assert one.boxes[1:] == said
    assert one.notes == "<p>a</p>"
    assert not layout.joined(one, layout.Slide("Step 1", [Code("y = 2", defines=False)]))
    full = layout.Slide("Step 2", [Code("x = 1\n" * 17 + "x = 2", defines=False)])
    assert not layout.joined(full, layout.Slide("Step 2", said * 4))


def test_how_a_notebook_is_used_is_told_by_the_speaker(decks):
    for name, each in decks.items():
        assert not [s.heading for s in each.slides if s.heading.endswith("Exercises")], name


def test_the_command_writes_every_deck_and_a_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("notebooks", "course/lessons", "course/wrong_answers", "course/quizzes"):
        Path(name).mkdir(parents=True)
    for file in (f"notebooks/{NAMES[0]}.ipynb", f"course/lessons/{NAMES[0]}.md",
                 f"course/wrong_answers/{NAMES[0]}.toml",
                 f"course/quizzes/{NAMES[0]}.toml"):  # fmt: skip
        Path(file).write_text((ROOT / file).read_text(encoding="utf-8"), encoding="utf-8")
    Path("course/timetables.md").write_text(TIMETABLE, encoding="utf-8")
    done = CliRunner().invoke(main, ["out"])
    assert done.exit_code == 0, done.output
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"index.html", "half-a-day.html", "two-days.html", f"{NAMES[0]}.html"}
    index = Path("out/index.html").read_text(encoding="utf-8")
    assert all(f'href="{name}"' in index for name in names - {"index.html"})


# --- in a browser ---------------------------------------------------------------------------------

LEAVES = """() => {
  const out = [];
  document.querySelectorAll('section').forEach((slide, place) => {
    const seen = slide.classList.contains('now');
    slide.classList.add('now');
    const body = slide.querySelector('.body'), screen = slide.getBoundingClientRect();
    const say = what => out.push(`slide ${place + 1}: ${what}`);
    const heading = slide.querySelector('h1, h2').parentElement;
    for (const box of [body, heading, slide])
      if (box.scrollHeight > box.clientHeight + 1 || box.scrollWidth > box.clientWidth + 1)
        say(`${box.className || box.tagName} ${box.scrollWidth} × ${box.scrollHeight}`);
    const parts = [...body.querySelectorAll('pre, p, li, td, table, img, .column')];
    for (const part of parts) {
      const at = part.getBoundingClientRect();
      if (at.right > screen.right - 40 || at.bottom > body.getBoundingClientRect().bottom + 1)
        say(`${part.tagName} leaves the screen`);
      if (part.tagName !== 'IMG' && part.scrollWidth > part.clientWidth + 1)
        say(`${part.tagName} is cut off`);
      if (part.matches('pre, p, li, td') && parseFloat(getComputedStyle(part).fontSize) < 18)
        say(`${part.tagName} is small`);
    }
    if (!parts.length) say('empty');
    slide.classList.toggle('now', seen);
  });
  return out;
}"""


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        yield player.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])


in_a_browser = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")


@pytest.mark.browser
@in_a_browser
def test_nothing_leaves_the_screen_on_any_slide_and_nobody_is_asked(browser, folder):
    tab, asked, said, left = browser.new_page(viewport={"width": 1280, "height": 720}), [], [], {}
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: message.type == "error" and said.append(message.text))
    for path in sorted(folder.glob("*.html")):
        tab.goto(path.as_uri(), wait_until="domcontentloaded")
        left[path.stem] = tab.evaluate(LEAVES)
    assert len(left) == len(NAMES) + 3
    tab.evaluate("""() => {
      document.querySelector('section.now .body').innerHTML = '<p style="font-size: 9px">x</p>'
        + '<pre class="code">' + 'line\\n'.repeat(40) + '</pre>'
        + '<pre>' + 'w'.repeat(300) + '</pre>';
    }""")
    planted = " ".join(tab.evaluate(LEAVES))
    tab.close()
    assert {name: some for name, some in left.items() if some} == {}
    assert all(what in planted for what in ("body", "leaves", "cut off", "small"))
    assert {url for url in asked if not url.startswith(("file:", "data:"))} == set()
    assert said == []


@pytest.mark.browser
@in_a_browser
def test_keys_turn_pages_clocks_count_and_the_speaker_has_a_window(browser, folder, decks):
    each, count = decks[NAMES[5]], len(decks[NAMES[5]].slides)
    first = next(i for i, slide in enumerate(each.slides, 1) if slide.kind == "turn")
    (minutes,) = (b.minutes for b in each.slides[first - 1].boxes if isinstance(b, layout.Clock))
    tab = browser.new_page(viewport={"width": 1280, "height": 720})
    tab.clock.install()
    tab.goto((folder / f"{NAMES[5]}.html").as_uri())
    now = tab.locator("section.now")
    for key, place in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", count)):
        tab.keyboard.press(key)
        assert now.get_attribute("id") == f"slide-{place}"
    tab.evaluate(f"location.hash = '#{first}'")
    clock = now.locator(".clock")
    assert clock.inner_text() == f"{minutes}:00"
    tab.keyboard.press("c")
    tab.clock.run_for(62_000)
    assert clock.inner_text() in (f"{minutes - 2}:59", f"{minutes - 2}:58")
    clock.click()  # stops, and turns no page
    tab.clock.run_for(5_000)
    assert clock.inner_text() in (f"{minutes - 2}:59", f"{minutes - 2}:58")
    clock.click()
    tab.clock.run_for(minutes * 60_000)
    assert clock.inner_text().startswith("−1:0")
    assert "over" in clock.get_attribute("class")
    with tab.expect_popup() as opened:
        tab.keyboard.press("s")
    notes = opened.value
    assert "What people get wrong" in notes.locator("#notes").inner_text()
    assert "planned: minutes" in notes.locator("#span").inner_text()
    tab.keyboard.press("ArrowRight")
    assert notes.locator("#where").inner_text().startswith(f"{first + 1} / {count}")
    notes.keyboard.press("ArrowLeft")
    assert now.get_attribute("id") == f"slide-{first}"
    tab.close()


@pytest.mark.browser
@in_a_browser
def test_a_lesson_opened_from_a_cut_has_the_slides_of_what_the_cut_takes(browser, folder, decks):
    name = "05_paged_attention"
    tab = browser.new_page(viewport={"width": 1280, "height": 720})
    out = "steps 2, 7; exercises 2, 3; 8–9 package, measure"
    tab.goto(f"{(folder / f'{name}.html').as_uri()}?without={quote(out)}")
    left = tab.evaluate("slides.map(slide => [slide.dataset.part || '', slide.dataset.row || ''])")
    parts, rows = {part for part, _ in left}, {row for _, row in left}
    assert {"step 1", "step 4", "exercise 1"} <= parts
    assert not parts & {"step 2", "step 7", "exercise 2", "exercise 3", "agenda", "break"}
    assert "8–9 package, measure" not in rows
    assert len(left) < len(decks[name].slides)
    tab.keyboard.press("End")
    assert tab.locator("section.now h2").inner_text() == "What we have built"
    tab.close()
