"""Run a notebook top to bottom, in place, and leave nothing in it that varies from run to run.

Invariant: running twice gives the same file, up to cells that time something. The .ipynb is the
only source, so cell ids, tags and text are never touched.

    python -m tools.course.execute notebooks/01_*.ipynb
"""

import sys
from pathlib import Path

import click
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
_VOLATILE_CELL_METADATA = ("execution", "ExecuteTime", "collapsed", "scrolled")


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Remove widget state, timestamps and interpreter details from `notebook`, in place."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {
                "display_name": "Python 3 (ipykernel)",
                "language": "python",
                "name": "python3",
            },
            "language_info": {"name": "python"},
        }
    )
    count = 0
    for cell in notebook.cells:
        for key in _VOLATILE_CELL_METADATA:
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
            # Without its state the view is an error message; its text/plain line stays.
            output.get("data", {}).pop(WIDGET_VIEW, None)
        cell.outputs = _merge_streams(cell.outputs)
    return notebook


def _merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join neighbouring pieces of one stream: where they are cut depends on timing."""
    merged: list[NotebookNode] = []
    for output in outputs:
        before = merged[-1] if merged else None
        if (
            before is not None
            and output.output_type == before.output_type == "stream"
            and output.name == before.name
        ):
            before.text += output.text
        else:
            merged.append(output)
    return merged


def execute(path: str | Path, *, cell_timeout: int = 300) -> None:
    """Run the notebook in its own folder, with this interpreter, and write it back.

    Raises:
        CellExecutionError: a cell raised without the tag `raises-exception`; the file is untouched.
    """
    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=cell_timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent.resolve())}},
        store_widget_state=False,
        record_timing=False,
    )
    client.execute()
    normalise(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)


@click.command(help=__doc__)
@click.argument("notebooks", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--cell-timeout", default=300, show_default=True, help="seconds for one cell")
@click.option("--only-normalise", is_flag=True, help="clean the file without running it")
def main(notebooks: tuple[Path, ...], cell_timeout: int, only_normalise: bool) -> None:
    for path in notebooks:
        if only_normalise:
            nbformat.write(normalise(nbformat.read(path, as_version=4)), path)
            continue
        try:
            execute(path, cell_timeout=cell_timeout)
        except CellExecutionError as error:
            click.echo(f"{path}: {error}", err=True)
            sys.exit(1)
        click.echo(f"{path}: ran, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
