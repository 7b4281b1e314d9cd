"""Which cells of a lesson its exercises need: what only tells or shows something can be left out.

Invariant: what is left out binds no name that a later cell which stays mentions, and changes
nothing in place as far as its text tells; who relies on more than that sees an exercise fail.
"""

import ast
from collections.abc import Sequence

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
                if free and not _names(tree, loaded=False) & mentioned:
                    continue
                mentioned |= _names(tree, loaded=True)
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

    A method that is called for its effect, an assignment into something, a name that is looked up
    as a string: all may change what others see.
    """
    for statement in tree.body:
        if isinstance(statement, ast.Expr):
            call = statement.value
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
                return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
            return False
        if isinstance(node, ast.Name) and node.id in ("globals", "locals", "exec", "eval"):
            return False
    return True


def _names(tree: ast.Module, *, loaded: bool) -> set[str]:
    """The names that are read somewhere in it, or those that are bound, inner ones too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) == loaded:
            found.add(node.id)
        elif not loaded and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif not loaded and isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
    return found
