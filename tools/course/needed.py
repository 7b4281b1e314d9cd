"""Which cells of a lesson its exercises need: what only tells or shows something can be left out.

Invariant: what is left out binds no name that a later cell which stays mentions, and changes
nothing in place as far as its text tells; who relies on more than that sees an exercise fail.
"""

import ast
import dis
from collections.abc import Iterator, Sequence
from types import CodeType

from nbformat import NotebookNode


def needed(cells: Sequence[NotebookNode]) -> list[NotebookNode]:
    """The cells in their order, without the untagged code cells that nothing after them needs."""
    kept: list[NotebookNode] = []
    mentioned: set[str] = set()
    for cell in reversed(cells):
        if cell.cell_type == "code":
            tree = _parsed(cell.source)
            if tree is not None:
                free = not cell.metadata.get("tags") and _only_shows(tree)
                if free and not _bound(tree) & mentioned:
                    continue
                mentioned |= _mentioned(tree)
        kept.append(cell)
    return kept[::-1]


def _parsed(source: str) -> ast.Module | None:
    """None: not Python alone, a magic perhaps."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def _only_shows(tree: ast.Module) -> bool:
    """Whether it binds names and calls functions by their bare names, `print` or `show`, no more.

    A method called for its effect on what another cell made, an assignment into that, a name that
    is looked up as a string: all may change what others see.
    """
    own = _bound(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and not (
            isinstance(node.ctx, ast.Load) or _root(node) in own
        ):
            return False
        if isinstance(node, ast.Name) and node.id in ("globals", "locals", "exec", "eval"):
            return False
        if isinstance(node, ast.Expr) and not (_is_plain(node.value) or _root(node.value) in own):
            return False
    return True


def _is_plain(value: ast.expr) -> bool:
    """A text, or a function called by its name."""
    called = isinstance(value, ast.Call) and isinstance(value.func, ast.Name)
    return called or isinstance(value, ast.Constant)


def _root(value: ast.expr) -> str:
    """`box` of `box.of[3].append(4)`; "" where it begins with no name."""
    while isinstance(value, ast.Attribute | ast.Subscript | ast.Call | ast.Await):
        value = value.func if isinstance(value, ast.Call) else value.value
    return value.id if isinstance(value, ast.Name) else ""


def _bound(tree: ast.Module) -> set[str]:
    """The names that the cell leaves behind: not those inside its functions and comprehensions."""
    return {name for stored, name in _steps(_code(tree)) if stored}


def _mentioned(tree: ast.Module) -> set[str]:
    """The names that it reads before it binds them, its functions' included."""
    first: dict[str, bool] = {}
    for stored, name in _steps(_code(tree)):
        first.setdefault(name, stored)
    found = {name for name, stored in first.items() if not stored}
    inner = list(_inner(_code(tree)))
    while inner:
        code = inner.pop()
        inner += _inner(code)
        found |= {name for stored, name in _steps(code) if not stored and not first.get(name)}
    return found


def _code(tree: ast.Module) -> CodeType:
    code = compile(tree, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(code, CodeType)
    return code


def _inner(code: CodeType) -> list[CodeType]:
    return [each for each in code.co_consts if isinstance(each, CodeType)]


def _steps(code: CodeType) -> Iterator[tuple[bool, str]]:
    """For each use of a name of the notebook: whether it is bound there, and the name."""
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_NAME", "STORE_GLOBAL", "DELETE_NAME", "DELETE_GLOBAL"):
            yield True, str(step.argval)
        elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            yield False, str(step.argval)
