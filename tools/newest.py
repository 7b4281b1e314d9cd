"""Do the newest versions of everything still work? `make newest`.

What pyproject.toml asks for is installed without its upper bounds, in an environment of its own;
then the tests run there. The report says which versions lie beyond a pin, and what the tests said:
whoever raises a pin knows before.

Invariant: neither pyproject.toml nor the project's own environment is touched.
"""

import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import click
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
EXTRA = "test"
BOUNDS_FROM_ABOVE = ("<", "<=", "==", "~=", "===")


def requirements(project: Mapping[str, Any], extra: str = EXTRA) -> Iterator[Requirement]:
    """What the project needs with an extra; extras that name extras are followed."""
    yield from map(Requirement, project["dependencies"])
    yield from _of_extra(project, extra)


def _of_extra(project: Mapping[str, Any], extra: str) -> Iterator[Requirement]:
    for wanted in map(Requirement, project["optional-dependencies"][extra]):
        if canonicalize_name(wanted.name) != canonicalize_name(project["name"]):
            yield wanted
        for other in sorted(wanted.extras if wanted.name == project["name"] else ()):
            yield from _of_extra(project, other)


def relaxed(wanted: Requirement) -> Requirement:
    """The same without bounds from above."""
    kept = [str(s) for s in wanted.specifier if s.operator not in BOUNDS_FROM_ABOVE]
    free = Requirement(str(wanted))
    free.specifier = SpecifierSet(",".join(kept))
    return free


def report(wanted: list[Requirement], found: Mapping[str, str], tests: str, passed: bool) -> str:
    """What was tried, in Markdown: the versions beyond a pin first."""
    rows = []
    for each in wanted:
        version = found.get(canonicalize_name(each.name))
        if version is not None:
            beyond = not each.specifier.contains(Version(version), prereleases=True)
            rows.append((not beyond, each.name, str(each.specifier), version))
    head = ["# The newest versions", "", f"Tests {'pass' if passed else 'FAIL'}: {tests}", ""]
    table = ["| package | pinned | tried | |", "|---|---|---|---|"]
    for within, name, pins, version in sorted(set(rows)):
        table.append(f"| {name} | {pins or 'any'} | {version} | {'' if within else 'beyond'} |")
    return "\n".join([*head, *table, ""])


def versions(site: Path) -> dict[str, str]:
    """Names and versions of what is installed in a folder."""
    installed = distributions(path=[str(site)])
    return {canonicalize_name(each.metadata["Name"]): each.version for each in installed}


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("pytest_args", nargs=-1, type=click.UNPROCESSED)
def main(folder: Path, pytest_args: tuple[str, ...]) -> None:
    """Make an environment in FOLDER, run the tests there, write FOLDER/report.md."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(requirements(project))
    venv.create(folder / "venv", with_pip=True, clear=True)
    python = str(folder / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "--upgrade", *(str(relaxed(each)) for each in wanted)], check=True)
    subprocess.run([*pip, "--no-deps", "-e", str(ROOT)], check=True)
    said = [python, "-m", "pytest", "-p", "no:cacheprovider", *pytest_args]
    done = subprocess.run(said, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    sys.stdout.write(done.stdout)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    last = (done.stdout.strip().splitlines() or ["nothing"])[-1].strip("= ")
    text = report(wanted, versions(site), last, done.returncode == 0)
    (folder / "report.md").write_text(text, encoding="utf-8")
    print(folder / "report.md")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
