"""Rules of the gate about a lesson's text: headings and the parts that every lesson has.

Invariant: each rule yields one sentence a violation.
"""

import re
import statistics
from collections.abc import Callable, Iterator

from nbformat import NotebookNode

from tools.course import editions
from tools.course.gate_cells import code_cells

MIN_CODE_CELLS, MAX_CODE_CELLS, MAX_MEDIAN_LINES = 25, 45, 6
MIN_EXERCISES, MAX_EXERCISES = 2, 8
_LANES = r"CPU|GPU|recorded"


def text_of(notebook: NotebookNode) -> str:
    """All Markdown cells, without what stands in code fences."""
    text = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)


def headings(notebook: NotebookNode) -> Iterator[str]:
    """One H1, first of all; H2 numbered 1, 2, 3 … by hand."""
    text = text_of(notebook)
    titles = re.findall(r"^# +\S.*$", text, re.MULTILINE)
    if len(titles) != 1:
        yield f"{len(titles)} H1 headings, expected one"
    first = next(iter(notebook.cells), None)
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell must begin with the title (H1)"
    numbers = []
    for heading in re.findall(r"^## +(.*)$", text, re.MULTILINE):
        match = re.match(r"(\d+)\.? +\S", heading)
        if match is None:
            yield f"H2 without a number: {heading!r}"
        else:
            numbers.append(int(match[1]))
    if not numbers:
        yield "no numbered H2 heading"
    elif numbers != list(range(numbers[0], numbers[0] + len(numbers))) or numbers[0] > 1:
        yield f"H2 headings are numbered {numbers}"


def size_of_a_lesson(notebook: NotebookNode) -> Iterator[str]:
    """Self-checks count as cells but not as lines: nobody has to read them."""
    cells = [cell for _, cell in code_cells(notebook)]
    if not MIN_CODE_CELLS <= len(cells) <= MAX_CODE_CELLS:
        yield f"{len(cells)} code cells, expected {MIN_CODE_CELLS} to {MAX_CODE_CELLS}"
    lengths = [len(c.source.splitlines()) for c in cells if "self-check" not in editions.tags(c)]
    if lengths and (median := statistics.median(lengths)) > MAX_MEDIAN_LINES:
        yield f"median code cell has {median:g} lines, at most {MAX_MEDIAN_LINES}"


def card(notebook: NotebookNode) -> Iterator[str]:
    """The card under the title, and the summary in Japanese."""
    first = notebook.cells[0].source if notebook.cells else ""
    for what, pattern in (
        ("minutes", r"\d+\s*(?:[-–]\s*\d+\s*)?min"),
        ("prerequisites", r"(?i)prerequisite"),
        ("lane (CPU, GPU or recorded)", rf"(?i)lane.*(?:{_LANES})"),
        ("package file (plamo_ref/…)", r"plamo_ref/\w"),
    ):
        if not re.search(pattern, first):
            yield f"the title card does not name the {what}"
    if "要約" not in text_of(notebook):
        yield "no Japanese summary (要約)"


def arc(notebook: NotebookNode) -> Iterator[str]:
    """From the prediction to its answer in the summary."""
    text = text_of(notebook)
    if not re.search(r"(?i)predict first", text):
        yield 'no question to "Predict first"'
    summary = re.search(r"(?ims)^## [^\n]*summary[^\n]*\n(.*)", text)
    if summary is None:
        yield "no H2 with the Summary"
        return
    bullets = re.findall(r"^[-*] +\S", summary[1], re.MULTILINE)
    if len(bullets) < 5:
        yield f"the Summary has {len(bullets)} bullets, expected five or more"
    for name in ("vLLM", "SGLang"):
        if name not in summary[1]:
            yield f"the Summary does not say what {name} does differently"
    if not re.search(r"(?i)predict", summary[1]):
        yield "the Summary does not answer the prediction"


def exercises(notebook: NotebookNode) -> Iterator[str]:
    """●○ difficulty, minutes, two levels of hints and a folded solution for each."""
    text = text_of(notebook)
    difficulties = re.findall(r"(?<![●○])[●○]+(?![●○])", text)
    count = len(difficulties)
    if not MIN_EXERCISES <= count <= MAX_EXERCISES:
        yield f"{count} exercises (●○○○○), expected {MIN_EXERCISES} to {MAX_EXERCISES}"
    for mark in difficulties:
        if not re.fullmatch(r"(?=.{5}$)●+○*", mark):
            yield f"difficulty {mark}: five marks, at least one ●, the ● first"
    if len(re.findall(r"(?i)up to \d+ min", text)) < count:
        yield 'an exercise without "up to N minutes"'
    folded = re.findall(r"<summary>(.*?)</summary>", text, re.DOTALL)
    hints = sum("hint" in title.lower() for title in folded)
    solutions = sum("solution" in title.lower() for title in folded)
    if hints < 2 * count:
        yield f"{hints} folded hints for {count} exercises, expected two for each"
    if solutions < count:
        yield f"{solutions} folded solutions for {count} exercises"
    if text.count("<details>") != text.count("</details>"):
        yield "a <details> without its </details>"


def editions_can_be_made(notebook: NotebookNode) -> Iterator[str]:
    """Stub, self-check and solution of each exercise are tagged, so that a program finds them."""
    count = len(re.findall(r"(?<![●○])[●○]+(?![●○])", text_of(notebook)))
    try:
        found = editions.exercises(notebook)
        solutions = [exercise.solution for exercise in found]
    except editions.EditionError as error:
        yield str(error)
        return
    if len(found) != count:
        yield f"{len(found)} exercises tagged {', '.join(editions.TAGS)}, but {count} with ●○○○○"
    for exercise, solution in zip(found, solutions, strict=True):
        if not re.search(r"raise NotImplementedError|[=:] \.\.\.", exercise.stub.source):
            yield f"cell {exercise.stub.id}: an open stub raises NotImplementedError or is `...`"
        if not re.search(r"check_(exercise|kernel)\(", exercise.check.source):
            yield f"cell {exercise.check.id}: a self-check calls check_exercise or check_kernel"
        if not exercise.check.metadata.get("jupyter", {}).get("source_hidden"):
            yield f"cell {exercise.check.id}: metadata.jupyter.source_hidden: it holds the answer"
        if solution in exercise.stub.source:
            yield f"cell {exercise.stub.id}: the stub is the solution"


LESSON_ONLY: tuple[Callable[[NotebookNode], Iterator[str]], ...] = (
    size_of_a_lesson,
    arc,
    exercises,
)
RULES = (headings, card, editions_can_be_made, *LESSON_ONLY)
