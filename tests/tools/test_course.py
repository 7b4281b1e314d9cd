"""The teaching kit says what the lessons say: minutes, cuts, words, links, measured numbers.

Invariant tested: a page of the kit that has fallen behind its lesson fails here.
"""

import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from packaging.specifiers import SpecifierSet

from plamo_ref.commands._workshop import NEEDED_MEMORY
from tools.course import course_map, measured, slides, timetable
from tools.course.editions import number_of
from tools.course.measured import Measured, minutes_of, table
from tools.course.wrong_answers import lessons

ROOT = Path(__file__).parents[2]
COURSE = ROOT / "course"
LESSONS = {path.stem: path for path, _ in lessons(ROOT)}
PAGES = {path.stem: path for path in sorted((COURSE / "lessons").glob("*.md"))}
DOCUMENTS = [*PAGES.values(), *COURSE.glob("*.md"), ROOT / "CONTRIBUTING.md"]
DOCUMENTS += (ROOT / "docs").glob("*.md")
PARTS = ["Minutes", "Where people get stuck", "On the board", "Two questions to discuss"]


def text_of(path: Path) -> str:
    if path.suffix == ".ipynb":
        notebook = nbformat.read(path, as_version=4)
        return "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    return path.read_text(encoding="utf-8")


def card_minutes(name: str) -> int:
    return minutes_of(nbformat.read(LESSONS[name], as_version=4))


def test_every_lesson_has_a_page_and_every_page_a_lesson():
    assert list(PAGES) == list(LESSONS)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_its_parts_and_its_minutes_are_the_lessons(name):
    text = text_of(PAGES[name])
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == PARTS
    lesson = timetable.read_lesson(LESSONS[name], PAGES[name])
    total = int(re.search(r"\*\*all\*\* \| \*\*(\d+)\*\*", text)[1])
    assert lesson.minutes == total == card_minutes(name)
    timed = [row for row in lesson.rows if row.exercises]
    assert [n for row in timed for n in row.exercises] == [*range(1, len(lesson.limits) + 1)]
    for row in timed:
        assert row.minutes == sum(lesson.limits[n - 1] for n in row.exercises), row.name
    stuck, board, questions = (text.split(f"## {part}")[1] for part in PARTS[1:])
    assert len(re.findall(r"^- ", stuck, re.MULTILINE)) >= 3
    drawn = re.search(r"```text\n(.*?)```", board, re.DOTALL)[1].splitlines()
    assert 2 <= len(drawn) <= 12
    assert max(map(len, drawn)) <= 80
    assert re.findall(r"^(\d)\. .{20}", questions, re.MULTILINE) == ["1", "2"]
    answers = questions.split("   *One answer.* ")[1:]
    assert [len(answer.split()) >= 20 for answer in answers] == [True, True]


@pytest.mark.parametrize("path", [*DOCUMENTS, *LESSONS.values()], ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    prose = re.sub(r"^```.*?^```", "", text_of(path), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose)
    broken = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert broken == []


def test_the_cuts_are_the_same_everywhere():
    readme, start = text_of(COURSE / "README.md"), text_of(LESSONS["00_start_here"])
    half, one = (re.search(rf"^\| {name} \|.*$", readme, re.MULTILINE)[0]
                 for name in ("half a day", "one day"))  # fmt: skip
    more = tuple(re.findall(r"\[(\d\d\w?)\]", one))
    assert tuple(re.findall(r"\[(\d\d\w?)\]", half)) == slides.CUTS["half-day"]
    assert tuple(sorted((*slides.HALF_DAY, *more))) == slides.CUTS["one-day"]
    assert slides.CUTS["two-days"] is None
    assert f"| half a day | {', '.join(slides.HALF_DAY)} |" in start
    assert f"also {', '.join(more)} |" in start


def test_the_minutes_of_the_cuts_are_the_sums_of_the_cards():
    readme = text_of(COURSE / "README.md")
    said = re.findall(r"\| (\d+) min \| (\d+) min \|", readme)
    cuts = timetable.read_cuts(ROOT)
    for (alone, in_class), (name, cut) in zip(said, slides.CUTS.items(), strict=True):
        wanted = sum(card_minutes(n) for n in LESSONS if cut is None or number_of(n) in cut)
        items = [item for day in cuts[name].days for item in day if "lessons/" in item.what]
        assert (int(alone), int(in_class)) == (wanted, sum(item.minutes for item in items))


def test_the_mail_speaks_of_what_the_doctor_says():
    mail = text_of(COURSE / "prework.md")
    doctor = "".join(path.read_text(encoding="utf-8") for path in (
        ROOT / "plamo_ref/commands/doctor.py", ROOT / "plamo_ref/commands/_workshop.py",
    ))  # fmt: skip
    for said in ("generate with tiny", "Triton exists for Linux only", "C++ compiler (lesson 12)",
                 "Japanese in figures", "--workshop"):  # fmt: skip
        assert said in mail
        assert said in doctor
    versions = re.findall(r"3\.\d+", mail.partition("Python ")[2].partition(";")[0])
    wanted = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]["requires-python"]
    assert [SpecifierSet(wanted).contains(v) for v in versions] == [True] * 3
    assert f"{NEEDED_MEMORY / 2**30:.0f} GiB of memory" in mail
    assert " ".join(slides.HALF_DAY) in mail


def test_the_glossary_is_sorted_and_bilingual():
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", text_of(COURSE / "glossary.md"),
                      re.MULTILINE)[1:]  # fmt: skip
    rows = [row for row in rows if not row[0].startswith("--")]
    english = [row[0].lower() for row in rows]
    assert len(rows) >= 50
    assert english == sorted(english, key=lambda word: re.sub(r"[^a-z ]", "", word))
    japanese = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
    assert [row for row in rows if not japanese.search(row[1])] == []
    assert [row for row in rows if japanese.search(row[2])] == []


def test_the_table_in_the_readme_is_the_measured_one():
    rows = measured.read(COURSE / "measured.json")
    assert [row.lesson for row in rows] == list(LESSONS)
    assert table(rows) in text_of(COURSE / "README.md")
    for row in rows:
        assert row.minutes == card_minutes(row.lesson)
        assert 0 < row.seconds < 60
        assert row.wrong_answers >= 3 * row.exercises > 0


def test_a_measurement_is_of_this_machine_and_now(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    card = "# A lesson\n\n| time | 10 minutes |"
    cells = [
        nbformat.v4.new_markdown_cell(card, id="card"),
        nbformat.v4.new_code_cell("print(6 * 7)", id="answer"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "01_a.ipynb")
    (tmp_path / "README.md").write_text(
        "<!-- measured: x -->\nold\n<!-- end of measured -->\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(measured.main, ["measured.json"])
    assert done.exit_code == 0, done.output
    (row,) = measured.read(tmp_path / "measured.json")
    assert isinstance(row, Measured)
    assert (row.minutes, row.cells, row.code_cells, row.words) == (10, 2, 1, 4)
    assert 0 < row.seconds < 60
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert table([row]) in readme
    assert "old" not in readme


# --- the map --------------------------------------------------------------------------------------


def test_the_map_shows_every_lesson_once_with_what_its_card_says():
    known = course_map.cards(ROOT / "notebooks")
    shown = [number for part in course_map.PARTS for number in part.numbers]
    assert sorted(shown) == list(known) == [number_of(name) for name in LESSONS]
    fig = course_map.course_map(ROOT / "notebooks")
    texts = " ".join(" ".join(text.get_text().split()) for text in fig.axes[0].texts)
    for card in known.values():
        assert f"{card.number} {card.name} {card.minutes} min" in texts
        assert all(need < card.number for need in card.needs), card


def test_the_text_of_the_map_does_not_overlap():
    fig = course_map.course_map(ROOT / "notebooks")
    FigureCanvasAgg(fig).draw()
    texts = [text.get_text() for text in fig.axes[0].texts]
    boxes = [text.get_window_extent() for text in fig.axes[0].texts]
    for i, one in enumerate(boxes):
        crossing = [texts[j] for j, other in enumerate(boxes[:i]) if one.overlaps(other)]
        assert crossing == [], texts[i]
        assert fig.bbox.contains(one.x0, one.y0)
        assert fig.bbox.contains(one.x1, one.y1)
