"""The pages of the site, gathered: what the repository has to read, each at the place it has there.

Invariant: a link of a page leads to a page of the site. A file of code that some page names becomes
a page as well; a folder that is named leads to the page that tells of it.
"""

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from shutil import copyfile

import nbformat
from nbformat.v4 import new_markdown_cell

from tools.course.course_map import PARTS
from tools.reach import Addresses

ROOT = Path(__file__).parents[3]
TEXTS = (
    "CONTRIBUTING.md",
    "docs/*.md",
    "course/*.md",
    "course/lessons/*.md",
    "plamo_ref/models/tiny/README.md",
)
IMAGES = (".png", ".svg", ".jpg")
# Where a folder is told of that has no page of its own.
FOLDERS = {
    "notebooks": "README.md",
    "plamo_ref": "docs/read_in_a_day.md",
    "course": "course/README.md",
}
# Code in a block, a link (of which the label may be code), code in a line: whichever comes first.
_PIECE = re.compile(
    r"^```.*?^```|\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)|`[^`\n]*`", re.MULTILINE | re.DOTALL
)


class SiteError(Exception):
    """A link leads to nothing; the message names the page and the link."""


def gather(target: Path, lessons: Collection[str] = (), addresses: Addresses | None = None) -> None:
    """Write all pages below `target`, an empty folder.

    Args:
        lessons: numbers; the others get no page, nor does what only teachers read. Empty: all.
        addresses: where the project is public; None: as pyproject.toml says.

    Raises:
        SiteError: a page links to what the repository does not have.
    """
    Pages(target, lessons, Addresses.read() if addresses is None else addresses).write()


class Pages:
    """The pages, and the files of code that they name."""

    def __init__(
        self, target: Path, lessons: Collection[str] = (), addresses: Addresses | None = None
    ) -> None:
        self._target, self._addresses = target, addresses or Addresses()
        every = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
        self._lessons = [n for n in every if not lessons or n.split("_")[0] in lessons]
        texts = TEXTS[:2] if lessons else TEXTS
        found = (path for pattern in texts for path in ROOT.glob(pattern))
        self._texts = sorted(path.relative_to(ROOT).as_posix() for path in found)
        self._code: set[str] = set()

    def write(self) -> None:
        for name in self._lessons:
            notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
            for cell in notebook.cells:
                if cell.cell_type == "markdown":
                    cell.source = self._linked(cell.source, f"notebooks/{name}")
            if links := self._addresses.of_lesson(name):
                where = " · ".join(f"[{label}]({address})" for label, address in links)
                notebook.cells.insert(1, new_markdown_cell(f"Run it: {where}", id="run-it"))
            self._put(f"notebooks/{name}", nbformat.writes(notebook))
        for name in self._texts:
            self._put(name, self._linked(_read(name), name))
        self._put("index.md", self._linked(_read("README.md"), "README.md") + self._contents())
        for name in sorted(self._code):
            self._put(f"{name}.md", _listing(name))

    def _linked(self, text: str, page: str) -> str:
        """The text of a page with links that lead where they lead on the site; code as it is."""
        return _PIECE.sub(lambda m: self._link(m[1], m[2], page) if m[2] else m[0], text)

    def _link(self, label: str, to: str, page: str) -> str:
        path, sharp, anchor = to.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return f"[{label}]({to})"
        name = normpath((PurePosixPath(page).parent / path).as_posix())
        name = FOLDERS.get(name, name)
        if (ROOT / name).is_dir():
            name = f"{name}/__init__.py"
        if not (ROOT / name).is_file():
            if (ROOT / name).parent.is_dir():
                return label  # a folder of data: there is nothing to read
            raise SiteError(f"{page}: {to} leads to nothing")
        if name.endswith(".ipynb") and PurePosixPath(name).name not in self._lessons:
            return label
        if name.endswith(IMAGES):
            self._copy(name)
        elif name == "README.md":
            name = "index.md"
        elif name not in self._texts and not name.endswith(".ipynb"):
            self._code.add(name)
            name += ".md"
        there = relpath(name, PurePosixPath(page).parent.as_posix())
        return f"[{label}]({there}{sharp}{anchor})"

    def _contents(self) -> str:
        """The lists of pages that Sphinx wants; they are the menu beside each page."""
        of_number = {name.split("_")[0]: f"notebooks/{name}" for name in self._lessons}
        menu = [
            _toctree(p.title, [of_number[n] for n in p.numbers if n in of_number]) for p in PARTS
        ]
        menu.append(_toctree("The project", [n for n in self._texts if not n.startswith("course")]))
        menu.append(_toctree("Teaching it", [n for n in self._texts if n.startswith("course")]))
        return "\n".join(["", *menu])

    def _copy(self, name: str) -> None:
        path = self._target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        copyfile(ROOT / name, path)

    def _put(self, name: str, text: str) -> None:
        path = self._target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _toctree(caption: str, pages: list[str]) -> str:
    lines = ["```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```", ""]
    return "\n".join(lines)


def _listing(name: str) -> str:
    """A page that shows a file."""
    kind = {".py": "python", ".toml": "toml", ".sh": "bash"}.get(PurePosixPath(name).suffix, "text")
    return f"---\norphan: true\n---\n\n# {name}\n\n`````{kind}\n{_read(name)}`````\n"
