"""The gate reports each rule that is broken, nothing else, and the lessons break none."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools.course.editions import TAGS
from tools.course.execute import normalise
from tools.course.gate import RULES, main, violations

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

TITLE = """# A lesson

You will understand one thing.

60 min · Prerequisites: lesson 01 · Lane: CPU · you will understand `plamo_ref/config.py`

**要約** 一行目。二行目。三行目。"""
EXERCISE = """**Exercise {n}** ●●○○○ · importance ●●●●○ · up to 10 minutes

<details><summary>Hint 1</summary>look</details>
<details><summary>Hint 2</summary>look again</details>
<details><summary>Solution</summary>

```python
# not a heading
answer = 42
```
</details>""".replace(" · importance ●●●●○", "")
SUMMARY = """## 3. Summary

- one
- two
- three
- four
- five

Your prediction: 42. vLLM does it otherwise; SGLang too."""


def exercise(n: int) -> list[NotebookNode]:
    """Stub, self-check, and the text with hints and solution."""
    cells = [
        new_code_cell(f"answer_{n} = ...", id=f"ex{n}"),
        new_code_cell(f'check_exercise("{n}", answer_{n}, 42)', id=f"ex{n}-check"),
        new_markdown_cell(EXERCISE.format(n=n), id=f"exercise-{n}"),
    ]
    for cell, tag in zip(cells, TAGS, strict=True):
        cell.metadata["tags"] = [tag]
    cells[1].metadata["jupyter"] = {"source_hidden": True}
    return cells


def lesson() -> NotebookNode:
    """A small notebook that breaks no rule."""
    cells = [
        new_markdown_cell(TITLE, id="title"),
        new_markdown_cell("## 1. Predict first\n\nHow many?", id="predict"),
    ]
    for i in range(21):
        shown = new_output("stream", name="stdout", text=f"{i}\n")
        cells.append(new_code_cell(f"print({i})", id=f"step-{i}", outputs=[shown]))
    cells += [
        new_markdown_cell("## 2. Exercises", id="exercises"),
        *exercise(1),
        *exercise(2),
        new_markdown_cell(SUMMARY, id="summary"),
    ]
    return normalise(new_notebook(cells=cells))


def judged(tmp_path: Path, notebook: NotebookNode, name: str = "05_x.ipynb") -> list[str]:
    path = tmp_path / name
    path.write_text(nbformat.v4.writes(notebook), encoding="utf-8")
    return violations(path)


def code(notebook: NotebookNode) -> NotebookNode:
    """The first code cell."""
    return notebook.cells[2]


def picture(kind: str) -> NotebookNode:
    return new_output("display_data", data={kind: "<svg/>", "text/plain": "<figure>"})


def stream(text: str, name: str = "stdout") -> NotebookNode:
    return new_output("stream", name=name, text=text)


def set_source(source: str) -> Callable[[NotebookNode], None]:
    return lambda n: code(n).update(source=source)


def set_outputs(*outputs: NotebookNode) -> Callable[[NotebookNode], None]:
    return lambda n: code(n).update(outputs=list(outputs))


def replace(index: int, old: str, new: str) -> Callable[[NotebookNode], None]:
    """Edit a Markdown cell; `old` must be there."""

    def edit(notebook: NotebookNode) -> None:
        source = notebook.cells[index].source
        assert old in source
        notebook.cells[index].source = source.replace(old, new)

    return edit


def set_cell(index: int, source: str) -> Callable[[NotebookNode], None]:
    return lambda n: n.cells[index].update(source=source)


def one_exercise(notebook: NotebookNode) -> None:
    del notebook.cells[-4:-1]
    for number in range(2):  # the size of the lesson stays
        shown = [stream("x")]
        notebook.cells.insert(2, new_code_cell("print('x')", id=f"more-{number}", outputs=shown))
    normalise(notebook)


def untag(notebook: NotebookNode) -> None:
    for cell in notebook.cells[-4:-1]:
        del cell.metadata["tags"]


def set_widgets(notebook: NotebookNode) -> None:
    notebook.metadata["widgets"] = {}


def set_timestamps(notebook: NotebookNode) -> None:
    code(notebook).metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}


def set_kernel(notebook: NotebookNode) -> None:
    notebook.metadata.kernelspec.name = "my-venv"


def set_version(notebook: NotebookNode) -> None:
    notebook.metadata.language_info["version"] = "3.11.7"


def twice_the_same_id(notebook: NotebookNode) -> None:
    code(notebook).id = "step-1"


def random_id(notebook: NotebookNode) -> None:
    code(notebook).id = "3f2a9b10"


def older_format(notebook: NotebookNode) -> None:
    notebook.nbformat_minor = 4
    for cell in notebook.cells:
        del cell["id"]


def not_run(notebook: NotebookNode) -> None:
    code(notebook).execution_count = None


def grow(notebook: NotebookNode) -> None:
    code(notebook).outputs = [stream("x" * 150_000)]


def few_cells(notebook: NotebookNode) -> None:
    del notebook.cells[10:12]
    normalise(notebook)


def many_cells(notebook: NotebookNode) -> None:
    notebook.cells += [new_code_cell("x = 1", id=f"more-{i}") for i in range(21)]
    normalise(notebook)


def tall_cells(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code" and "tags" not in cell.metadata:
            cell.source = "x = 1\n" * 7


WIDGET = "application/vnd.jupyter.widget-view+json"
ERROR = new_output("error", ename="ValueError", evalue="no", traceback=[])
BROKEN = {
    "too big": (grow, "kB, at most 150 kB"),
    "nbformat 4.4": (older_format, "nbformat 4.4, expected 4.5"),
    "id twice": (twice_the_same_id, "cell step-1: the id occurs twice"),
    "random id": (random_id, "a random id"),
    "widget state": (set_widgets, "widget state"),
    "widget id": (
        set_outputs(new_output("display_data", data={WIDGET: {"model_id": "a"}})),
        "id of a widget",
    ),
    "timestamps": (set_timestamps, "timestamps"),
    "kernel": (set_kernel, "must be python3"),
    "interpreter": (set_version, "language_info.version"),
    "long cell": (set_source("x = 1\n" * 31), "31 lines, at most 30"),
    "address": (set_outputs(stream("<obj at 0x7f3a12345678>")), "memory address"),
    "path": (set_outputs(stream("saved /home/me/x.bin")), "path of this machine"),
    "port": (set_outputs(stream("on http://127.0.0.1:8123")), "local address or port"),
    "pid": (set_outputs(stream("worker pid=4321")), "process id"),
    "address in a result": (
        set_outputs(new_output("execute_result", data={"text/plain": "<f 0x7f3a12345678>"})),
        "memory address",
    ),
    "not executed": (not_run, "execution count None, expected 1"),
    "empty cell": (set_source(""), "cell step-0: empty"),
    "error": (set_outputs(ERROR), "raised ValueError without the tag"),
    "stderr": (set_outputs(stream("UserWarning: x", "stderr")), "writes to stderr"),
    "underscore": (set_source("print(_)"), "reads _, which is history"),
    "Out": (set_source("print(Out[1])"), "reads Out, which is history"),
    "semicolon": (set_source("x = 1;  # quiet"), "ends in ';'"),
    "clear_output": (set_source("from a import clear_output\nclear_output()"), "clear_output"),
    "update_display": (set_source("handle.update_display(1)"), "update_display"),
    "import": (set_source("from tools.course import gate"), "imports tools, which is in a"),
    "syntax": (set_source("def"), "not Python"),
    "svg without alt": (set_outputs(picture("image/svg+xml")), "1 pictures but 0 lines of alt"),
    "png without alt": (
        set_outputs(picture("image/png"), picture("image/png"), stream("[figure] one\n")),
        "2 pictures but 1 lines of alt",
    ),
    "two H1": (replace(1, "## 1.", "# Another\n\n## 1."), "2 H1 headings"),
    "no H1": (replace(0, "# A lesson", "A lesson"), "0 H1 headings"),
    "bare H2": (replace(1, "## 1. P", "## P"), "H2 without a number"),
    "gap in H2": (replace(1, "## 1.", "## 7."), r"numbered \[7, 2, 3\]"),
    "few cells": (few_cells, "23 code cells"),
    "many cells": (many_cells, "46 code cells"),
    "tall cells": (tall_cells, "median code cell has 7 lines"),
    "minutes": (replace(0, "60 min", "a while"), "does not name the minutes"),
    "prerequisites": (replace(0, "Prerequisites", "Before"), "name the prerequisites"),
    "lane": (replace(0, "Lane: CPU", "CPU"), "name the lane"),
    "package file": (replace(0, "plamo_ref/", ""), "name the package file"),
    "Japanese": (replace(0, "要約", "summary"), "no Japanese summary"),
    "prediction": (replace(1, "Predict first", "Guess"), "Predict first"),
    "no summary": (replace(-1, "Summary", "End"), "no H2 with the Summary"),
    "four bullets": (replace(-1, "- five\n", ""), "Summary has 4 bullets"),
    "no vLLM": (replace(-1, "vLLM", "It"), "what vLLM does"),
    "no SGLang": (replace(-1, "SGLang", "It"), "what SGLang does"),
    "no answer": (replace(-1, "prediction", "number"), "answer the prediction"),
    "one exercise": (one_exercise, "1 exercises"),
    "no tag": (lambda n: n.cells[-3].metadata.pop("tags"), "ex2-check|tagged solution, expected"),
    "no solution tag": (lambda n: n.cells[-2].metadata.pop("tags"), "no cell tagged solution"),
    "untagged": (untag, "1 exercises tagged .*, but 2 with"),
    "stub is solved": (set_cell(-4, "answer_2 = 41"), "an open stub raises"),
    "answers in sight": (lambda n: n.cells[-3].metadata.pop("jupyter"), "ex2-check: .*hidden"),
    "no self-check": (set_cell(-3, "print(answer_2)"), "a self-check calls check_exercise"),
    "difficulty": (replace(-2, "●●○○○", "●○●○○"), "difficulty ●○●○○"),
    "no difficulty": (replace(-2, "●●○○○", "○○○○○"), "difficulty ○○○○○"),
    "four marks": (replace(-2, "●●○○○", "●●○○"), "difficulty ●●○○:"),
    "no minutes": (replace(-2, "up to 10 minutes", ""), "without .up to N minutes"),
    "one hint": (replace(-2, "Hint 2", "More"), "3 folded hints for 2"),
    "no solution": (replace(-2, "Solution", "Answer"), "1 folded solutions for 2"),
    "unfolded": (replace(-2, "look</details>", "look"), "without its </details>"),
}


def test_a_good_lesson_has_no_violations(tmp_path: Path) -> None:
    assert judged(tmp_path, lesson()) == []


@pytest.mark.parametrize("case", BROKEN)
def test_each_broken_rule_is_reported(tmp_path: Path, case: str) -> None:
    damage, message = BROKEN[case]
    notebook = lesson()
    damage(notebook)
    found = judged(tmp_path, notebook)
    assert any(re.search(message, violation) for violation in found), found
    # Breaking one rule must not set off the others: at most one neighbour may join in.
    assert len(found) <= 2, found


def test_every_rule_is_broken_by_some_case() -> None:
    silent = {rule.__name__ for rule in RULES}
    for damage, _ in BROKEN.values():
        notebook = lesson()
        damage(notebook)
        for rule in RULES:
            if rule.__name__ in silent and list(rule(notebook)):
                silent.discard(rule.__name__)
    assert not silent


@pytest.mark.parametrize(
    "source",
    [
        "for _ in range(2):\n    pass",
        "a, _ = 1, 2\nprint(_)",
        "%load_ext x\nx = 1",
        "s = 'a;'",
        "x = 1  # no;",
    ],
)
def test_innocent_cells_pass(tmp_path: Path, source: str) -> None:
    notebook = lesson()
    code(notebook).source = source
    assert judged(tmp_path, notebook) == []


@pytest.mark.parametrize(
    "text",
    ["plamo_ref/engine/x.py", "https://example.org/home/x", "max 0x1F", "slot 8123", "rapid 12"],
)
def test_innocent_outputs_pass(tmp_path: Path, text: str) -> None:
    notebook = lesson()
    code(notebook).outputs = [stream(text)]
    assert judged(tmp_path, notebook) == []


def test_a_tagged_exception_and_a_described_picture_pass(tmp_path: Path) -> None:
    notebook = lesson()
    code(notebook).metadata["tags"] = ["raises-exception"]
    code(notebook).outputs = [picture("image/png"), stream("[figure] a bar\n"), ERROR]
    assert judged(tmp_path, notebook) == []


def test_the_map_of_the_series_may_be_short_but_not_careless(tmp_path: Path) -> None:
    notebook = lesson()
    few_cells(notebook)
    notebook.cells = notebook.cells[:-4]
    assert judged(tmp_path, notebook, "00_start_here.ipynb") == []
    assert judged(tmp_path, notebook, "01_anatomy.ipynb") != []
    set_widgets(notebook)
    assert len(judged(tmp_path, notebook, "00_start_here.ipynb")) == 1


def test_a_cell_that_is_none_is_a_violation(tmp_path: Path) -> None:
    notebook = lesson()
    code(notebook).cell_type = "prose"
    assert judged(tmp_path, notebook)[0].startswith("not valid")


def test_what_is_no_notebook_is_a_violation(tmp_path: Path) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text("{", encoding="utf-8")
    assert violations(path)[0].startswith("cannot be read as a notebook")


def test_the_command_lists_violations_and_fails(tmp_path: Path) -> None:
    good, bad = tmp_path / "01_a.ipynb", tmp_path / "02_b.ipynb"
    nbformat.write(lesson(), good)
    notebook = lesson()
    set_widgets(notebook)
    nbformat.write(notebook, bad)
    result = CliRunner().invoke(main, [str(good), str(bad)])
    assert result.exit_code == 1
    assert "02_b.ipynb: metadata.widgets" in result.output
    assert "2 notebooks, 1 violations" in result.output
    assert CliRunner().invoke(main, [str(good)]).exit_code == 0


def test_normalising_mends_what_running_leaves_behind(tmp_path: Path) -> None:
    notebook = lesson()
    for damage in (set_widgets, set_timestamps, set_kernel, set_version, not_run):
        damage(notebook)
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "[…]"}
    code(notebook).outputs = [new_output("display_data", data=view), stream("a"), stream("b")]
    ids = [cell.id for cell in notebook.cells]
    once = copy.deepcopy(normalise(notebook))
    assert judged(tmp_path, once) == []
    assert normalise(notebook) == once
    assert [cell.id for cell in notebook.cells] == ids
    assert code(notebook).outputs[1].text == "ab"
    assert code(notebook).outputs[0].data == {"text/plain": "[…]"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_lesson_keeps_the_rules(notebook: Path) -> None:
    assert violations(notebook) == []
