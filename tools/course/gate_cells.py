"""Rules of the gate about cells, metadata and outputs.

Invariant: each rule yields one sentence a violation, beginning with the cell it is about.
"""

import ast
import re
from collections.abc import Callable, Iterator

from nbformat import NotebookNode

MAX_LINES = 30
_RANDOM_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})?")
_HISTORY = re.compile(r"_{1,3}|_\d+|Out|In|_i+\d*|_oh|_ih")
_CHECKOUT = re.compile(r"^\s*(?:from|import) (tools|tests|benchmarks)\b", re.MULTILINE)
_HIDDEN = {
    "a memory address": re.compile(r"\b0x[0-9a-fA-F]{8,16}\b"),
    "a path of this machine": re.compile(
        r"(?<![\w.:/])/(?:home|root|tmp|work|Users|usr|opt|var)/\w"
    ),
    "a local address or port": re.compile(
        r"\b(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1\])(?::\d+)?|\bport[ =:]+\d{4,5}\b"
    ),
    "a process id": re.compile(r"\bpid[ =:]+\d+\b", re.IGNORECASE),
}


def code_cells(notebook: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    """Code cells with the name by which a violation calls them."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            yield f"cell {cell.get('id', '?')}", cell


def output_texts(cell: NotebookNode) -> Iterator[str]:
    """Every text in the outputs that a reader or nbval can see (pictures excepted)."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        elif output.output_type == "error":
            yield "\n".join([output.ename, output.evalue, *output.traceback])
        else:
            for kind, data in output.data.items():
                if isinstance(data, str) and not kind.startswith("image/"):
                    yield data


def stable_ids(notebook: NotebookNode) -> Iterator[str]:
    """Ids are unique and chosen by the author: a random one changes with every rebuild."""
    seen: set[str] = set()
    for number, cell in enumerate(notebook.cells):
        identity = cell.get("id", "")
        if not identity:
            yield f"cell number {number} has no id"
        elif identity in seen:
            yield f"cell {identity}: the id occurs twice"
        elif _RANDOM_ID.fullmatch(identity):
            yield f"cell {identity}: a random id; name the cell after what it does"
        seen.add(identity)


def short_cells(notebook: NotebookNode) -> Iterator[str]:
    for name, cell in code_cells(notebook):
        lines = len(cell.source.splitlines())
        if lines > MAX_LINES:
            yield f"{name}: {lines} lines, at most {MAX_LINES}"


def clean_metadata(notebook: NotebookNode) -> Iterator[str]:
    if "widgets" in notebook.metadata:
        yield "metadata.widgets: strip the widget state (tools.course.execute does)"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "metadata.kernelspec.name must be python3"
    if "version" in notebook.metadata.get("language_info", {}):
        yield "metadata.language_info.version: names the interpreter of one machine"
    for name, cell in code_cells(notebook):
        for key in ("execution", "ExecuteTime"):
            if key in cell.metadata:
                yield f"{name}: metadata.{key} holds timestamps"
        for output in cell.outputs:
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                yield f"{name}: the id of a widget in the output"


def nothing_of_this_machine(notebook: NotebookNode) -> Iterator[str]:
    for name, cell in code_cells(notebook):
        for text in output_texts(cell):
            for what, pattern in _HIDDEN.items():
                if match := pattern.search(text):
                    yield f"{name}: {what} in the output: {match[0]!r}"


def executed(notebook: NotebookNode) -> Iterator[str]:
    """Every code cell has run, in order, and raised only where it is tagged to."""
    for number, (name, cell) in enumerate(code_cells(notebook), start=1):
        if not cell.source.strip():
            yield f"{name}: empty"
        elif cell.execution_count != number:
            yield f"{name}: execution count {cell.execution_count}, expected {number}: run all"
        tagged = "raises-exception" in cell.metadata.get("tags", [])
        for output in cell.outputs:
            if output.output_type == "error" and not tagged:
                yield f"{name}: raised {output.ename} without the tag raises-exception"
            if output.output_type == "stream" and output.name == "stderr":
                yield f"{name}: writes to stderr: {output.text.strip().splitlines()[:1]}"


def no_history(notebook: NotebookNode) -> Iterator[str]:
    """nbval runs cells without IPython's history, and with outputs that only ever grow."""
    for name, cell in code_cells(notebook):
        lines = cell.source.rstrip().splitlines()
        if lines and lines[-1].split("#")[0].rstrip().endswith(";"):
            yield f"{name}: ends in ';'"
        plain = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines)
        try:
            tree = ast.parse(plain)
        except SyntaxError as error:
            yield f"{name}: not Python: {error.msg}"
            continue
        own = "_" if _assigned(tree, "_") else None  # `for _ in …` is no history
        for node in ast.walk(tree):
            reads = node.id if isinstance(node, ast.Name) and _loads(node) else ""
            if reads != own and _HISTORY.fullmatch(reads):
                yield f"{name}: reads {reads}, which is history"
            used = getattr(node, "attr", getattr(node, "id", getattr(node, "name", "")))
            if used in ("clear_output", "update_display"):
                yield f"{name}: {used}"
                break


def _loads(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def _assigned(tree: ast.AST, name: str) -> bool:
    """Whether the cell itself binds `name`."""
    return any(
        isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Store)
        for n in ast.walk(tree)
    )


def imports_what_readers_have(notebook: NotebookNode) -> Iterator[str]:
    """JupyterLab starts a kernel beside the lesson: a checkout's other folders are not in sight."""
    for name, cell in code_cells(notebook):
        for match in re.finditer(_CHECKOUT, cell.source):
            yield f"{name}: imports {match[1]}, which is in a checkout only, not in the package"


def pictures_have_alt_text(notebook: NotebookNode) -> Iterator[str]:
    """Beside each picture stands a line "[figure] …", as show() prints it."""
    for name, cell in code_cells(notebook):
        pictures = sum(
            any(kind.startswith("image/") for kind in output.get("data", {}))
            for output in cell.outputs
        )
        lines = sum(
            len(re.findall(r"^\[figure\] \S", output.text, re.MULTILINE))
            for output in cell.outputs
            if output.output_type == "stream"
        )
        if pictures > lines:
            yield f"{name}: {pictures} pictures but {lines} lines of alt text; use show(fig, alt)"


RULES: tuple[Callable[[NotebookNode], Iterator[str]], ...] = (
    stable_ids,
    short_cells,
    clean_metadata,
    nothing_of_this_machine,
    executed,
    no_history,
    imports_what_readers_have,
    pictures_have_alt_text,
)
