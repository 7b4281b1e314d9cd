"""Runs code cells where there is no torch, as in a browser: a program of test_without_torch.py.

Reads a list of lists of sources as JSON, a list a lesson; writes for each cell what it printed.
"""

import ast
import contextlib
import io
import json
import sys
from importlib.abc import MetaPathFinder
from typing import Any

ABSENT = ("torch", "triton")


class Absent(MetaPathFinder):
    """Finds that there is no torch."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def printed(sources: list[str]) -> list[str]:
    """What each cell of one lesson prints. An error is told with its cell."""
    names: dict[str, Any] = {"__name__": "__main__", "display": lambda *_, **__: None}
    texts = []
    for source in sources:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            try:
                exec(compile(ast.parse(source), "<cell>", "exec"), names)
            except Exception as error:
                raise SystemExit(
                    f"{type(error).__name__}: {error}\nin the cell\n{source}"
                ) from error
        texts.append(out.getvalue())
    return texts


def main() -> None:
    sys.meta_path.insert(0, Absent())
    import IPython.display

    from plamo_ref.teaching import figures

    if "--draw" not in sys.argv:  # made it is: its facts are in the line that is printed beside it
        figures.svg = lambda fig, alt="": ""  # type: ignore[assignment]
    IPython.display.display = lambda *_, **__: None
    lessons = json.load(sys.stdin)
    texts = [printed(lesson) for lesson in lessons]
    assert not set(ABSENT) & set(sys.modules)
    json.dump(texts, sys.stdout)


if __name__ == "__main__":
    main()
