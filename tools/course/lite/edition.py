"""The browser's edition of a lesson: what needs torch shows what it gave, all the rest runs.

A cell that is tagged `torch` becomes a text with its code and the outputs that are committed. All
other code cells stay as they are: they run on the package's own scheduler and cache, in which there
is no tensor.

Invariant: no code cell of the edition imports torch, and each gives what it gives elsewhere
(tests/notebooks/test_without_torch.py).
"""

import base64
import re
from collections.abc import Collection, Iterator
from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from tools.course.editions import number_of, tags

NUMBERS = ("05", "06", "07", "08", "09")  # of the lessons that run in a browser
TORCH = "torch"  # the tag
TOLD = (
    "**Not in a browser.** This cell needs torch. On a machine that has it, it gave what follows."
)
_PICTURES = {"image/svg+xml": "svg", "image/png": "png"}
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(\.\./([^)\s]+)\)")


def lessons(folder: Path) -> list[Path]:
    """Those of `folder` that have such an edition."""
    return [path for path in sorted(folder.glob("*.ipynb")) if number_of(path) in NUMBERS]


def browser(notebook: NotebookNode, address: str = "") -> NotebookNode:
    """The lesson as a browser can run it.

    Args:
        address: of the repository; links to its files lead there, or are plain text without one.
    """
    edition = deepcopy(notebook)
    edition.cells = [_told(cell) if TORCH in tags(cell) else cell for cell in edition.cells]
    for cell in edition.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        else:
            cell.source = _LINK.sub(lambda m: _linked(m[1], m[2], address), cell.source)
    return edition


def write(folder: Path, target: Path, address: str = "") -> Collection[Path]:
    """The edition of every lesson in `folder` that has one, written into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    written = [target / path.name for path in lessons(folder)]
    for path in written:
        notebook = nbformat.read(folder / path.name, as_version=4)
        nbformat.write(browser(notebook, address), path)
    return written


def _linked(label: str, path: str, address: str) -> str:
    return f"[{label}]({address}/blob/main/{path})" if address else label


def _told(cell: NotebookNode) -> NotebookNode:
    """A code cell as a text: its code, and what it gave."""
    parts = [TOLD, f"```python\n{cell.source}\n```"]
    attachments: dict[str, dict[str, str]] = {}
    for output in cell.outputs:
        text = output.get("text") or output.get("data", {}).get("text/plain", "")
        pictures = list(_pictures(output, len(attachments)))
        parts += [f"![]({'attachment:' + name})" for name, _ in pictures]
        attachments |= dict(pictures)
        if text and not pictures:
            parts.append(f"```text\n{text.rstrip()}\n```")
    told = new_markdown_cell("\n\n".join(parts), id=cell.id)
    if attachments:
        told.attachments = nbformat.from_dict(attachments)
    return told


def _pictures(output: NotebookNode, number: int) -> Iterator[tuple[str, dict[str, str]]]:
    for kind, ending in _PICTURES.items():
        if kind in output.get("data", {}):
            data = output.data[kind]
            is_text = kind == "image/svg+xml"
            encoded = (
                base64.b64encode(data.encode()).decode() if is_text else data.replace("\n", "")
            )
            yield f"figure{number}.{ending}", {kind: encoded}
