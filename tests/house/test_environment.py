"""environment.yml says what pyproject.toml says: one place of pins, the other only refers to it."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]
PYTHON = re.compile(r"python=(\d+\.\d+)")


@pytest.fixture(scope="module")
def environment() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def conda_packages(environment: dict[str, Any]) -> list[str]:
    return [entry for entry in environment["dependencies"] if isinstance(entry, str)]


def pip_lines(environment: dict[str, Any]) -> list[str]:
    (section,) = [entry for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert list(section) == ["pip"]
    return section["pip"]


def test_conda_forge_is_the_only_channel(environment):
    assert environment["channels"] == ["conda-forge"]


def test_conda_brings_python_pip_and_jupyterlab_and_pins_python_alone(environment):
    names = {re.split(r"[=<>! ]", package)[0] for package in conda_packages(environment)}
    assert names == {"python", "pip", "jupyterlab"}
    pinned = [p for p in conda_packages(environment) if re.search("[=<>!]", p)]
    assert len(pinned) == 1
    assert PYTHON.fullmatch(pinned[0])


def test_python_is_one_that_the_project_supports(environment, project):
    (version,) = [m[1] for p in conda_packages(environment) if (m := PYTHON.fullmatch(p))]
    assert SpecifierSet(project["requires-python"]).contains(f"{version}.0")


def test_pip_installs_this_project_and_has_no_pin_of_its_own(environment, project):
    (line,) = pip_lines(environment)
    match = re.fullmatch(r"-e \.\[([\w,-]+)\]", line)
    assert match, f"expected '-e .[extra,…]', found {line!r}"
    assert set(match[1].split(",")) <= set(project["optional-dependencies"])


def test_jupyterlab_of_conda_is_also_a_dependency_of_what_pip_installs(environment, project):
    """So pip checks the version that conda chose against the project's range."""
    extras = set(re.findall(r"[\w-]+", pip_lines(environment)[0].partition("[")[2]))
    names, seen = set(), set()
    while extras:
        extra = extras.pop()
        seen.add(extra)
        for line in project["optional-dependencies"][extra]:
            requirement = Requirement(line)
            names.add(requirement.name)
            if requirement.name == project["name"]:
                extras |= requirement.extras - seen
    assert "jupyterlab" in names


def test_every_dependency_has_a_lower_bound(project):
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    requirements = [Requirement(line) for group in groups for line in group]
    free = [
        r.name
        for r in requirements
        if r.name != project["name"] and not any(s.operator == ">=" for s in r.specifier)
    ]
    assert free == []
