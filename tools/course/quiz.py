"""Three questions a lesson, to be printed: for the class, and with answers for the teacher.

    python -m tools.course.quiz build/student                # quiz.html
    python -m tools.course.quiz build/teacher --answers      # quiz_answers.html

Invariant: both pages show the options in one order, which is not that of the file. A wrong option
comes with the sentence that says why it is wrong; a question of another form is refused.
"""

import random
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import click
from nbconvert.filters import markdown2html

from plamo_ref.errors import PlamoRefError
from tools.course.editions import number_of

FOLDER = Path("course/quizzes")  # under the root of the repository
COUNT = 3  # questions a lesson
LETTERS = "ABCD"

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 12pt/1.45 sans-serif; color: #111; background: #fff; max-width: 44em;
  margin: 2em auto; padding: 0 1em; }}
section {{ break-inside: avoid; }}
h1 {{ font-size: 18pt; }}
h2 {{ margin: 1.6em 0 .4em; font-size: 13pt; break-after: avoid; }}
ol {{ padding-left: 1.4em; }}
ol p {{ margin: .3em 0; }}
table {{ border-collapse: collapse; margin: 0 0 .9em; }}
td {{ padding: .1em .5em; vertical-align: top; }}
td p {{ display: inline; }}
td:first-child {{ white-space: nowrap; min-width: 2em; text-align: right; }}
.right {{ font-weight: bold; }}
.why {{ color: #444; font-weight: normal; }}
</style></head><body>
<h1>{title}</h1>
<p>{lead}</p>
{lessons}
</body></html>
"""
_LEADS = {
    False: "One of the options is right. Say of each of the others what somebody had in mind who "
    "takes it.",
    True: "For the teacher: what is right, and the sentence for whoever took another one. Let "
    "them argue before you say it.",
}


class QuizError(PlamoRefError):
    """A file of questions of another form."""


@dataclass(frozen=True)
class Option:
    text: str
    why: str  # it is right, or wrong
    is_right: bool


@dataclass(frozen=True)
class Question:
    """One question of a lesson; `section` is where the lesson answers it."""

    lesson: str
    number: int  # from 1
    ask: str
    section: int
    options: tuple[Option, ...]  # in the order in which they are shown
    proof: str  # a Python expression that is true, or ""


def read_questions(path: Path) -> list[Question]:
    """The questions of one file.

    Raises:
        QuizError: not three of them, a key that is missing or unknown, or an option twice.
    """
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("question", [])
    if len(entries) != COUNT:
        raise QuizError(f"{path}: {len(entries)} questions, expected {COUNT}")
    found = []
    for number, entry in enumerate(entries, start=1):
        wanted = {"ask", "section", "right", "why", "wrong"}
        if not wanted <= entry.keys() <= {*wanted, "proof"}:
            raise QuizError(f"{path}: question {number} has {sorted(entry)}, not {sorted(wanted)}")
        options = [Option(entry["right"], entry["why"], True)]
        options += [Option(text, why, False) for text, why in entry["wrong"]]
        if not 3 <= len({option.text for option in options}) == len(options) <= len(LETTERS):
            raise QuizError(f"{path}: question {number} wants 2 or 3 wrong options, all different")
        random.Random(f"{path.stem} {number}").shuffle(options)
        found.append(
            Question(
                number_of(path), number, entry["ask"], entry["section"], tuple(options),
                entry.get("proof", ""),
            )
        )  # fmt: skip
    return found


def read_all(root: Path) -> dict[str, list[Question]]:
    """The questions of every lesson under `root`, by the lesson's number."""
    return {
        number_of(path): read_questions(path) for path in sorted((root / FOLDER).glob("*.toml"))
    }


def html(lessons: dict[str, list[Question]], titles: dict[str, str], answers: bool) -> str:
    """The page, for a printer or a browser; it asks nobody for anything."""
    parts = [
        f"<h2>{escape(titles[number])}</h2>\n<ol>\n{''.join(_items(questions, answers))}</ol>"
        for number, questions in lessons.items()
    ]
    title = "Questions and answers" if answers else "Questions"
    return _PAGE.format(title=title, lead=_LEADS[answers], lessons="\n".join(parts))


def _items(questions: Sequence[Question], answers: bool) -> Iterator[str]:
    for question in questions:
        rows = []
        for letter, option in zip(LETTERS, question.options, strict=False):
            look = ' class="right"' if answers and option.is_right else ""
            why = f'<td class="why">{markdown2html(option.why)}</td>' if answers else ""
            box = ("✓" if option.is_right else "") if answers else "☐"
            rows.append(
                f"<tr{look}><td>{box} {letter}</td><td>{markdown2html(option.text)}</td>{why}</tr>"
            )
        where = f" (section {question.section})" if answers else ""
        asked = markdown2html(question.ask + where)
        yield f"<li><section>{asked}<table>{''.join(rows)}</table></section></li>\n"


def titles_of(root: Path) -> dict[str, str]:
    """Number → title, from the pages of the lessons."""
    pages = sorted((root / "course" / "lessons").glob("*.md"))
    return {
        number_of(page): page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for page in pages
    }


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--answers", is_flag=True, help="the teacher's page")
def main(folder: Path, answers: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / ("quiz_answers.html" if answers else "quiz.html")
    lessons = read_all(Path())
    target.write_text(html(lessons, titles_of(Path()), answers), encoding="utf-8")
    click.echo(f"{target}: {sum(map(len, lessons.values()))} questions")


if __name__ == "__main__":
    main()
