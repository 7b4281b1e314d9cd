"""The book: its list, its size, and that it stands alone.

Invariant tested: every module on the book's shelves is read in exactly one sitting or named as
standing beside it; the book imports only itself and its edges, and nothing of the wings outside the
joints; it stays small enough to be read in a day; the texts say what the list says.
"""

import ast
from pathlib import Path

import pytest

from tools.book import PACKAGE, ROOT, TEXTS, Book, filled, num_lines, read_book

BOOK = read_book()
WHOLE = [
    path.relative_to(PACKAGE).as_posix()
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py" or path.parent == PACKAGE
]


def dotted(name: str) -> str:
    parts = Path(name).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def below(name: str, folders: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{folder}.") for folder in folders)


def imported(tree: ast.AST) -> set[str]:
    """Modules of the package that a tree imports anywhere, dotted, below plamo_ref."""
    names = {dotted(name) for name in WHOLE}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("plamo_ref."):
            owner = node.module.removeprefix("plamo_ref").removeprefix(".")
            inside = {f"{owner}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= inside & names or {owner}
    return found


def strangers(book: Book, name: str, source: str) -> list[str]:
    """What a file of the book imports although the book does not contain it."""
    known = {dotted(each) for each in (*book.files, *book.beside)}
    packages = {name.rpartition(".")[0] for name in known}
    allowed = known | packages
    return sorted(
        target
        for target in imported(ast.parse(source))
        if target not in allowed and not below(target, book.edges)
    )


def test_every_module_of_the_shelves_is_in_one_sitting_or_named_as_beside():
    elsewhere = [*BOOK.edges, *BOOK.wings, "models", "__main__"]
    shelves = [
        name
        for name in WHOLE
        if not below(dotted(name), tuple(elsewhere)) and not Path(name).stem.startswith("triton")
    ]
    assert sorted([*BOOK.files, *BOOK.beside]) == sorted(shelves)


@pytest.mark.parametrize("name", sorted(set(BOOK.files) - set(BOOK.joints)))
def test_the_book_imports_only_itself(name):
    assert strangers(BOOK, name, (PACKAGE / name).read_text(encoding="utf-8")) == []


def test_an_import_of_a_wing_is_noticed():
    for form in ("from plamo_ref.proof.law import run_scenario", "from plamo_ref.proof import law"):
        inside = f"def f():\n    {form}"
        assert strangers(BOOK, "engine/core.py", inside) == ["proof.law"]
    assert strangers(BOOK, "x.py", "from plamo_ref.kernels.norm import triton") != []


def test_joints_import_wings_only_when_asked():
    """At the top of the modules stands the book alone: without a GPU nothing else is loaded."""
    for name in BOOK.joints:
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        top = ast.Module(
            [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], type_ignores=[]
        )
        assert strangers(BOOK, name, ast.unparse(top)) == []
        assert strangers(BOOK, name, ast.unparse(tree)) != []


def test_the_book_can_be_read_in_a_day():
    assert BOOK.num_lines == sum(num_lines(name) for name in BOOK.files) <= BOOK.max_lines
    assert max(s.num_lines for s in BOOK.sittings) <= 1_500


def test_without_what_came_later_it_is_as_small_as_it_was_meant_to_be():
    later = [name for names in BOOK.later.values() for name in names]
    assert len(set(later) & set(BOOK.files)) == len(later)
    first = sum(num_lines(name) for name in set(BOOK.files) - set(later))
    assert BOOK.num_lines_at_first == first <= BOOK.max_lines_at_first <= 6_500


@pytest.mark.parametrize("name", TEXTS)
def test_the_texts_say_what_the_list_says(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- book: size -->" in text
    assert filled(text, BOOK, "../" * name.count("/")) == text, "run: python -m tools.book"


def test_a_reader_is_told_what_stands_around_the_book():
    text = (ROOT / "docs" / "read_in_a_day.md").read_text(encoding="utf-8")
    around = text[text.index("Around the book") :]
    folders = [name.replace(".", "/") for name in (*BOOK.edges, *BOOK.wings)]
    assert [f for f in folders if f"`{f}/`" not in around and f"`{f}.py`" not in around] == []
    assert all(f"`{joint}`" in around for joint in BOOK.joints)


def answers() -> list[tuple[str, str]]:
    """(file, name) of each question in docs/questions.md."""
    text = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    rows = [
        line.strip("| ").split(" | ") for line in text.splitlines() if "](../plamo_ref/" in line
    ]
    return [
        (file.partition("](../plamo_ref/")[2].rstrip(")"), name.strip("`"))
        for _, file, name in rows
    ]


@pytest.mark.parametrize(("file", "name"), answers())
def test_a_question_leads_to_what_it_asks_for(file, name):
    body = ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [n for n in body if getattr(n, "name", None) == part]
        assert found, f"{file} defines no {part}"
        body = getattr(found[0], "body", [])


def test_there_are_questions():
    assert len(answers()) >= 20
