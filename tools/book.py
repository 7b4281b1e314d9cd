"""The book as a list of files: `python -m tools.book` writes its tables into the texts.

Invariant: docs/read_in_a_day.md and README.md say of the book what book.toml says; the lines that
they count are those of the files.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.marks import fill

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "plamo_ref"
TEXTS = ("README.md", "docs/read_in_a_day.md")


@dataclass(frozen=True)
class Sitting:
    """About an hour of reading: what is read, which lessons build it, what one can say then."""

    title: str
    lessons: tuple[str, ...]
    files: tuple[str, ...]  # below plamo_ref/
    answers: str

    @property
    def num_lines(self) -> int:
        return sum(num_lines(name) for name in self.files)


@dataclass(frozen=True)
class Book:
    """What book.toml says."""

    sittings: tuple[Sitting, ...]
    max_lines: int
    max_lines_at_first: int  # without `later`
    later: Mapping[str, tuple[str, ...]]  # what the engine learned since, and the files of it
    edges: tuple[str, ...]
    wings: tuple[str, ...]
    joints: tuple[str, ...]
    beside: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        return [name for sitting in self.sittings for name in sitting.files]

    @property
    def num_lines(self) -> int:
        return sum(map(num_lines, self.files))

    @property
    def num_lines_at_first(self) -> int:
        """Without what came later."""
        return self.num_lines - sum(num_lines(n) for names in self.later.values() for n in names)


def read_book() -> Book:
    given = tomllib.loads((Path(__file__).with_suffix(".toml")).read_text(encoding="utf-8"))
    sittings = tuple(
        Sitting(s["title"], tuple(s["lessons"]), tuple(s["files"]), s["answers"])
        for s in given["sittings"]
    )
    later = {what: tuple(files) for what, files in given["later"].items()}
    lists = {name: tuple(given[name]) for name in ("edges", "wings", "joints", "beside")}
    return Book(**given | lists | {"sittings": sittings, "later": later})


def num_lines(name: str) -> int:
    return len((PACKAGE / name).read_text(encoding="utf-8").splitlines())


def tables(book: Book, up: str) -> dict[str, str]:
    """Name of a table → its Markdown; `up` leads from the text's folder to the root."""
    return {"sittings": "\n".join(_sittings(book, up)), "size": _size(book)}


def _sittings(book: Book, up: str) -> Iterator[str]:
    yield "| hour | read | lines | then you can say |"
    yield "|---|---|---|---|"
    for hour, sitting in enumerate(book.sittings, start=1):
        links = ", ".join(f"[`{name}`]({up}plamo_ref/{name})" for name in sitting.files)
        lessons = ", ".join(sitting.lessons)
        yield (
            f"| {hour} | **{sitting.title}** ({lessons}): {links} "
            f"| {sitting.num_lines:,} | {sitting.answers} |"
        )


def _size(book: Book) -> str:
    *most, last = book.later
    later = f"{', '.join(most)} and {last}"
    return (
        f"{len(book.files)} files, {book.num_lines:,} lines; "
        f"{book.num_lines_at_first:,} of them without {later}, which came later."
    )


def filled(text: str, book: Book, up: str) -> str:
    """The text, its tables between `<!-- book: NAME -->` and `<!-- end -->` made anew."""
    for name, table in tables(book, up).items():
        if f"<!-- book: {name} -->" in text:
            text = fill(text, f"book: {name}", table)
    return text


def main() -> None:
    for name in TEXTS:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        path.write_text(filled(text, read_book(), "../" * name.count("/")), encoding="utf-8")


if __name__ == "__main__":
    main()
