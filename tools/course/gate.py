"""The notebook gate: the house rules of a lesson that a program can judge.

Invariant: every rule is one function from a notebook to the violations it finds, and a notebook
without violations is safe to commit: strict nbval can compare it and GitHub can show it.

    python -m tools.course.gate notebooks/*.ipynb
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import nbformat
from nbformat import NotebookNode

from tools.course import gate_cells, gate_text

Rule = Callable[[NotebookNode], Iterator[str]]

MAX_BYTES = 150_000
RULES: tuple[Rule, ...] = (*gate_cells.RULES, *gate_text.RULES)


def violations(path: str | Path) -> list[str]:
    """What is wrong with the notebook file; empty when nothing is."""
    path = Path(path)
    try:
        # Not nbformat.read: it mends ids while reading, and the gate is to see them as they are.
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        version = (data["nbformat"], data["nbformat_minor"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"cannot be read as a notebook: {error}"]
    found = []
    if (size := path.stat().st_size) > MAX_BYTES:
        found.append(f"{size / 1000:.0f} kB, at most {MAX_BYTES / 1000:.0f} kB with outputs")
    if version != (4, 5):
        return [*found, f"nbformat {version[0]}.{version[1]}, expected 4.5"]
    notebook = nbformat.v4.reads(text)
    if unstable := list(gate_cells.stable_ids(notebook)):
        return found + unstable
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [*found, f"not valid: {str(error).splitlines()[0]}"]
    # The map of the series is no lesson: it has neither the size nor the exercises of one.
    map_of_series = path.name.startswith("00_")
    rules = [r for r in RULES if not (map_of_series and r in gate_text.LESSON_ONLY)]
    return found + [violation for rule in rules for violation in rule(notebook)]


@click.command(help=__doc__)
@click.argument("notebooks", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
def main(notebooks: tuple[Path, ...]) -> None:
    total = 0
    for path in notebooks:
        for violation in violations(path):
            total += 1
            click.echo(f"{path}: {violation}")
    click.echo(f"{len(notebooks)} notebooks, {total} violations")
    sys.exit(1 if total else 0)


if __name__ == "__main__":
    main()
