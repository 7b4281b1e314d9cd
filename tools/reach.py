"""Where the lessons can be opened with one click: `python -m tools.reach`, or `make badges`.

Colab (with a GPU), Binder and Codespaces take the lessons from the repository's public address, and
the browser's edition is a part of the site. Both addresses stand in pyproject.toml, [project.urls],
and nowhere else. Made from them are the links in README.md and on the site's pages, and colab/, the
lessons of the GPU lane with two cells in front that install the project and look at the machine.

Invariant: without an address there is no link to it and no colab/; what is committed is what this
makes from the addresses that are committed (tests/tools/test_reach.py).
"""

import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from plamo_ref.errors import PlamoRefError
from tools.course.editions import number_of, student
from tools.course.lite.edition import NUMBERS
from tools.marks import fill

ROOT = Path(__file__).parents[1]
GPU_LANE = ("10", "11")  # whose cells run compiled where there is a GPU
COLAB, BRANCH = "colab", "main"
_GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)")


class AddressError(PlamoRefError):
    """An address in pyproject.toml that cannot be one."""


@dataclass(frozen=True)
class Addresses:
    """Where the project is public; "" where it is not."""

    repository: str = ""
    site: str = ""

    @classmethod
    def of(cls, urls: Mapping[str, str]) -> "Addresses":
        """From [project.urls].

        Raises:
            AddressError: the repository is not one of GitHub, or the site has no https.
        """
        repository, site = (urls.get(name, "").rstrip("/") for name in ("Repository", "Site"))
        if repository and not _GITHUB.fullmatch(repository):
            raise AddressError(
                f"pyproject.toml: Repository = {repository!r} is no https://github.com/OWNER/NAME, "
                "which is where Colab, Binder and Codespaces look"
            )
        if site and not site.startswith("https://"):
            raise AddressError(f"pyproject.toml: Site = {site!r} does not begin with https://")
        return cls(repository, site)

    @classmethod
    def read(cls, root: Path = ROOT) -> "Addresses":
        text = (root / "pyproject.toml").read_text(encoding="utf-8")
        return cls.of(tomllib.loads(text)["project"].get("urls", {}))

    @property
    def name(self) -> str:
        """OWNER/NAME."""
        found = _GITHUB.fullmatch(self.repository)
        return found[1] if found else ""

    def of_lesson(self, path: Path | str) -> list[tuple[str, str]]:
        """(what it is called, address) of each place where a lesson can be opened."""
        file, number = Path(path).name, number_of(path)
        links = []
        if self.site and number in NUMBERS:
            links.append(("in this browser", f"{self.site}/lite/lab/index.html?path={file}"))
        if self.name:
            if number in GPU_LANE:
                colab = f"https://colab.research.google.com/github/{self.name}/blob/{BRANCH}"
                links.append(("Colab, with a GPU", f"{colab}/{COLAB}/{file}"))
            binder = f"https://mybinder.org/v2/gh/{self.name}/{BRANCH}"
            links.append(("Binder", f"{binder}?urlpath=lab/tree/notebooks/{file}"))
        return links


def readme(addresses: Addresses, lessons: list[Path]) -> str:
    """What stands between the marks in README.md; "" without an address."""
    of_place: dict[str, list[str]] = {}
    for path in lessons:
        for place, address in addresses.of_lesson(path):
            of_place.setdefault(place, []).append(f"[{number_of(path)}]({address})")
    lines = [f"- {place}: {', '.join(links)}" for place, links in of_place.items()]
    if addresses.name:
        codespaces = f"https://codespaces.new/{addresses.name}"
        lines.append(f"- [Codespaces]({codespaces}), or any editor that knows a devcontainer")
    if addresses.site:
        lines.append(f"- [all of them as pages]({addresses.site}/index.html)")
    return "\n".join(["The lessons with one click:", "", *lines]) if lines else ""


def colab(notebook: NotebookNode, addresses: Addresses) -> NotebookNode:
    """A lesson for a machine of Colab, which has Jupyter and a GPU and nothing of this project."""
    edition = student(notebook)
    install = (
        f"!git clone --quiet --depth 1 {addresses.repository} plamo-ref\n"
        "%cd plamo-ref/notebooks\n%pip install --quiet .."
    )
    first = [new_code_cell(install, id="colab-install")]
    first.append(new_code_cell("!plamo-ref doctor", id="colab-doctor"))
    edition.cells = [*first, *edition.cells]
    edition.metadata["accelerator"] = "GPU"
    edition.metadata["colab"] = {"gpuType": "T4"}
    return edition


def made(addresses: Addresses, root: Path = ROOT) -> Iterator[tuple[Path, str]]:
    """Every file that follows from the addresses, and its text."""
    lessons = sorted((root / "notebooks").glob("[0-9]*.ipynb"))
    text = (root / "README.md").read_text(encoding="utf-8")
    yield root / "README.md", fill(text, "badges", readme(addresses, lessons))
    for path in lessons if addresses.name else ():
        if number_of(path) in GPU_LANE:
            edition = colab(nbformat.read(path, as_version=4), addresses)
            yield root / COLAB / path.name, nbformat.writes(edition) + "\n"


@click.command(help=__doc__)
def main() -> None:
    addresses = Addresses.read()
    shutil.rmtree(ROOT / COLAB, ignore_errors=True)
    for path, text in made(addresses):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        click.echo(path.relative_to(ROOT))
    if addresses == Addresses():
        click.echo("no links: pyproject.toml, [project.urls], has no address yet")


if __name__ == "__main__":
    main()
