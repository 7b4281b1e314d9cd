"""The texts say what is so: links, the five lines, every file that they name."""

import contextlib
import inspect
import io
import re
from pathlib import Path

import pytest

from plamo_ref import LLM

ROOT = Path(__file__).parents[2]
README_FILE = ROOT / "README.md"
README = README_FILE.read_text(encoding="utf-8")


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 15
    here = [link for link in links if "://" not in link]
    assert [link for link in here if not (ROOT / link).exists()] == []


def test_every_lesson_is_in_the_table():
    there = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(re.findall(r"\(notebooks/(\d\d\w+\.ipynb)\)", README)) == there


def test_the_five_lines_run():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code[1], {})
    assert said.getvalue().startswith("吾輩は")
    assert "\nTo be, or" in said.getvalue()


def test_what_it_says_of_llm_is_there():
    said = re.findall(r"`llm\.(\w+)\(", README)
    assert {"chat", "stream", "close"} <= set(said)
    assert [name for name in said if not callable(getattr(LLM, name, None))] == []
    assert "config=EngineConfig(…)" in README
    assert "config" in inspect.signature(LLM).parameters


# --- what all texts name is there ----------------------------------------------------------------

TEXTS = [README_FILE, ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("course/*.md")]
NAMED = re.compile(
    r"`((?:[\w.*<>-]+/)*[\w.*<>-]+\.(?:py|toml|json|md|ipynb)|(?:[\w.-]+/)+)`"  # or a folder
)


def named_files(text: str) -> set[str]:
    """Paths in backticks, and in commands."""
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    spoken = re.findall(r"`python ((?:[\w-]+/)+\w+\.py)", text)
    written = re.findall(r"(?:[\w-]+/)+\w+\.(?:py|json)\b", commands)
    return {*NAMED.findall(text), *spoken, *written}


def modules_run(text: str) -> set[str]:
    return set(re.findall(r"python -m ((?:plamo_ref|tools)[\w.]*\w)", text))


def is_there(name: str, beside: Path = ROOT) -> bool:
    """From the root, below the package or beside the text, <…> being anything; a bare name may
    stand anywhere."""
    pattern = re.sub(r"<\w+>", "*", name).rstrip("/")
    if "/" not in name:
        return any(any(ROOT.glob(f"{top}{pattern}")) for top in ("", "[a-z]*/**/"))
    return any(any(base.glob(pattern)) for base in (ROOT, ROOT / "plamo_ref", beside))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_every_file_and_module_that_a_text_names_is_there(path):
    text = path.read_text(encoding="utf-8")
    assert sorted(name for name in named_files(text) if not is_there(name, path.parent)) == []
    modules = (name.replace(".", "/") for name in modules_run(text))
    assert [
        n for n in modules if not any(is_there(n + end) for end in (".py", "/__main__.py"))
    ] == []


def test_a_file_that_is_not_there_is_noticed():
    text = "`kernels/nothing.py` `nothing_*.py` `no/` `python a/none.py x`\n```sh\nrun a/b.py\n```"
    assert named_files(text) == {
        *("kernels/nothing.py", "nothing_*.py", "no/", "a/none.py", "a/b.py")
    }
    assert not any(map(is_there, named_files(text)))
    assert all(map(is_there, ("engine/core.py", "kernels/<shelf>/twin.py", "faults_*.py", "chat/")))
    assert modules_run("`python -m tools.nothing x`") == {"tools.nothing"}
