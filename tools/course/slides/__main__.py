"""`python -m tools.course.slides build/slides`: a deck a lesson, a deck a cut, a list of all."""

from html import escape
from pathlib import Path

import click

from tools.course.slides.cuts import cuts, slides_of
from tools.course.slides.deck import deck, numbered
from tools.course.slides.lesson import read
from tools.course.slides.page import page

TIMETABLES = Path("course/timetables.md")
_KEYS = """<p>Arrows turn pages; C starts and stops a countdown; S opens a window for the speaker:
notes, the next heading, clocks. Printing gives each slide with its notes. A lesson that is opened
from a cut has only the slides of what that cut takes.</p>"""


def write(root: Path, path: Path, folder: Path) -> tuple[Path, str]:
    """Write the deck of the lesson at `path`; returns its file and its title."""
    lesson = read(root, path)
    title = lesson.parts[0].title.partition(":")[0]
    return _put(folder / f"{path.stem}.html", page(title, deck(lesson))), title


def write_all(root: Path, folder: Path) -> list[tuple[Path, str]]:
    """Every deck, and index.html; returns the decks with their titles."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    timetables = root / TIMETABLES
    if timetables.exists():
        for title, days in cuts(timetables.read_text(encoding="utf-8")).items():
            name = title.lower().replace(" ", "-")
            text = page(title, numbered(slides_of(title, days)))
            written.append((_put(folder / f"{name}.html", text), title))
    written += [
        write(root, path, folder) for path in sorted((root / "notebooks").glob("[0-9]*.ipynb"))
    ]
    links = "\n".join(
        f'<li><a href="{file.name}">{escape(title)}</a></li>' for file, title in written
    )
    head = '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Slides</title>'
    _put(folder / "index.html", f"{head}\n<h1>Slides</h1>\n{_KEYS}\n<ul>\n{links}\n</ul>\n")
    return written


def _put(target: Path, text: str) -> Path:
    target.write_text(text, encoding="utf-8")
    return target


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    written = write_all(Path(), folder)
    click.echo(f"{len(written)} decks: {folder}/index.html")


if __name__ == "__main__":
    main()
