"""What of a code cell is projected: the definitions that carry the idea, what it printed, pictures.

Invariant: shown code is lines of the cell, unchanged, whole statements, at most MOST_LINES of them;
imports, checks and drawing are left out. A cell of which more would be left has to name what is
shown: `slides.show` in its metadata.
"""

import ast
import base64
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from nbformat import NotebookNode

from tools.course.editions import tags
from tools.course.slides.lesson import SlideError

MOST_LINES = 18  # of code
MOST_SAID = 14  # lines of output
MOST_WHOLE = 12  # lines of a cell without definitions
_CALLED = re.compile(r"\b(check\w*|show|interactive|scrub|lend|fill|plt\.show)\(")
_DRAWS = re.compile(
    r"\b(figures?|frames|lines|bars|gantt|mask_heatmap|thermometer|layer_strip|ax\.\w+|\w*Figure)\("
)
_FIGURE = re.compile(rf"^fig\b|{_DRAWS.pattern}", re.MULTILINE)  # makes or dresses one
_LENT = re.compile(r": lent, until yours passes$")  # of interest to whoever builds it
_ALT = re.compile(r"^\[figure\] ", re.MULTILINE)


@dataclass(frozen=True)
class Code:
    """Lines of Python; `defines` when a function or class is among them."""

    source: str
    defines: bool

    @property
    def lines(self) -> list[str]:
        return self.source.split("\n")


@dataclass(frozen=True)
class Said:
    """Printed text; `verdict` when a check printed it."""

    text: str
    verdict: bool

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")


@dataclass(frozen=True)
class Picture:
    """A figure as an address that holds it, with its size in px and what it shows."""

    address: str
    width: float
    height: float
    alt: str


@dataclass(frozen=True)
class Text:
    """Markdown that a cell displayed."""

    markdown: str


Shown = Code | Said | Picture | Text


def shown(cell: NotebookNode) -> list[Shown]:
    """What a slide has of the cell, code first; empty when the cell is not for the screen."""
    if cell.metadata.get("slideshow", {}).get("slide_type") == "skip":
        return []
    outputs = [*_outputs(cell)]
    code = _code(cell, bool(outputs), any(isinstance(o, Picture) for o in outputs))
    return [*([code] if code else []), *outputs]


# --- outputs --------------------------------------------------------------------------------------


def _outputs(cell: NotebookNode) -> Iterator[Shown]:
    alts = [
        line.removeprefix("[figure] ")
        for output in cell.outputs
        if output.output_type == "stream"
        for line in output.text.splitlines()
        if line.startswith("[figure] ")
    ]
    for output in cell.outputs:
        if output.output_type == "stream":
            lines = [line for line in output.text.rstrip().split("\n") if not _ALT.match(line)]
            lines = [line for line in lines if not _LENT.search(line)]
            if any(line.strip() for line in lines):
                yield _said(lines)
        elif "image/png" in output.data:
            width, height = struct.unpack(">II", _bytes(output.data["image/png"])[16:24])
            address = f"data:image/png;base64,{''.join(output.data['image/png'].split())}"
            yield Picture(address, width, height, alts.pop(0))
        elif "image/svg+xml" in output.data:
            yield _drawing(output.data["image/svg+xml"], alts.pop(0))
        elif "text/markdown" in output.data:
            yield Text(output.data["text/markdown"])


def _said(lines: list[str]) -> Said:
    verdict = all(line[:1] in "✓○" for line in lines if line.strip())
    most = 4 if verdict else MOST_SAID
    if len(lines) > most + 1:
        lines = [*lines[:most], f"… and {len(lines) - most} lines more in the lesson"]
    return Said("\n".join(lines), verdict)


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def _drawing(svg: str, alt: str) -> Picture:
    """As an image of its own, so that ids of two drawings cannot meet."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    if box is None:
        raise SlideError(f"a drawing without a viewBox: {alt!r}; draw it with show()")
    coded = base64.b64encode(svg.encode()).decode()
    points = 4 / 3  # px; a viewBox of matplotlib is in points
    size = (float(box[1]) * points, float(box[2]) * points)
    return Picture(f"data:image/svg+xml;base64,{coded}", *size, alt)


# --- code -----------------------------------------------------------------------------------------


def _code(cell: NotebookNode, speaks: bool, draws: bool) -> Code | None:
    source = cell.source.removeprefix("# NBVAL_IGNORE_OUTPUT\n")
    names = cell.metadata.get("slides", {}).get("show")
    if names == "all":
        return _checked(_closed_up([source]), "def " in source, cell.id)
    if names is not None:
        return _excerpt(source, names, cell.id)
    if "exercise" in tags(cell):
        return _checked(_closed_up([source]), True, cell.id)
    pieces = list(_pieces(source))
    defines = [text for text, node in pieces if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    kept = [text for text, node in pieces if not _left_out(node, text)]
    whole = _closed_up(kept)
    if any(text in defines for text in kept):
        if whole.count("\n") >= MOST_LINES:
            whole = _closed_up([text for text in kept if text in defines])
        return _checked(whole, True, cell.id)
    if draws or not speaks or not whole or whole.count("\n") >= MOST_WHOLE:
        return None
    return None if _DRAWS.search(whole) or _CALLED.search(source) else Code(whole, False)


def _closed_up(pieces: list[str]) -> str:
    """The pieces with one blank line where there were two."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(pieces)).strip("\n")


def _checked(source: str, defines: bool, cell: str) -> Code:
    if (count := source.count("\n") + 1) > MOST_LINES:
        raise SlideError(
            f"cell {cell}: {count} lines of definitions, at most {MOST_LINES} fit a slide; name "
            'those that carry the idea in its metadata: "slides": {"show": ["name"]}'
        )
    return Code(source, defines)


def _left_out(node: ast.stmt, text: str) -> bool:
    """Imports, checks, hints, and what draws."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name.startswith("draw_") or _DRAWS.search(text) is not None
    if isinstance(node, ast.Assign | ast.Expr) and _FIGURE.search(text):
        return True
    if isinstance(node, ast.Expr):
        return _CALLED.match(text.strip()) is not None
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id in ("hint", "alt")
    return isinstance(node, ast.Import | ast.ImportFrom)


def _pieces(source: str) -> Iterator[tuple[str, ast.stmt]]:
    """Each statement at the top with the comments and blank lines before it."""
    lines, done = source.split("\n"), 0
    for node in ast.parse(source).body:
        assert node.end_lineno is not None
        yield "\n".join(lines[done : node.end_lineno]), node
        done = node.end_lineno


def _excerpt(source: str, names: list[str], cell: str) -> Code:
    """The named definitions; "Class.method" shows the method under its class's first line."""
    found, lines = {}, source.split("\n")
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = _lines_of(node, lines)
        if isinstance(node, ast.ClassDef):
            found[f"{node.name}."] = "\n".join([*lines[_first(node) - 1 : node.lineno], "    …"])
            inner = [child for child in node.body if isinstance(child, ast.FunctionDef)]
            found |= {f"{node.name}.{child.name}": _lines_of(child, lines) for child in inner}
    if missing := [name for name in names if name not in found]:
        raise SlideError(f"cell {cell}: slides.show names {missing}, it defines {sorted(found)}")
    pieces, above = [], ""
    for name in names:
        owner = name[: name.find(".") + 1]
        pieces += [found[owner]] if owner != above and owner else []
        pieces.append(found[name])
        above = owner
    return _checked("\n\n".join(pieces), True, cell)


def _lines_of(node: ast.FunctionDef | ast.ClassDef, lines: list[str]) -> str:
    return "\n".join(lines[_first(node) - 1 : node.end_lineno])


def _first(node: ast.FunctionDef | ast.ClassDef) -> int:
    """The line of the definition, or of its first decorator."""
    return min(line.lineno for line in [node, *node.decorator_list])
