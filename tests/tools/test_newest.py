"""`make newest`: which versions are tried, and what is said of them.

Invariant tested: every dependency of the project is tried without its bound from above and with
that from below; the report names what lies beyond a pin, and whether the tests passed.
"""

import tomllib

from packaging.requirements import Requirement

from tools.newest import ROOT, relaxed, report, requirements

PROJECT = {
    "name": "a-project",
    "dependencies": ["one>=1,<2", "two"],
    "optional-dependencies": {
        "inner": ["three~=3.1; python_version<'4'"],
        "test": ["a-project[inner]", "four[x]>=4.1,!=4.3,<5"],
    },
}


def test_extras_are_followed_and_only_bounds_from_above_go():
    wanted = list(requirements(PROJECT))
    assert [each.name for each in wanted] == ["one", "two", "three", "four"]
    assert [str(relaxed(each)) for each in wanted] == [
        "one>=1",
        "two",
        'three; python_version < "4"',
        "four[x]!=4.3,>=4.1",
    ]


def test_the_project_is_read_whole():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {each.name for each in requirements(project)}
    assert {"torch", "jupyterlab", "fastapi", "sentencepiece", "pytest", "sphinx"} <= names
    assert "plamo-ref" not in names
    assert not any("<" in str(relaxed(each).specifier) for each in requirements(project))


def test_the_report_says_what_lies_beyond_a_pin():
    wanted = [Requirement("one>=1,<2"), Requirement("Two_x"), Requirement("gone")]
    text = report(wanted, {"one": "2.1", "two-x": "7"}, "3 failed", passed=False)
    assert "Tests FAIL: 3 failed" in text
    assert "| one | <2,>=1 | 2.1 | beyond |" in text
    assert "| Two_x | any | 7 |  |" in text
    assert "gone" not in text
    assert text.index("| one ") < text.index("| Two_x ")
