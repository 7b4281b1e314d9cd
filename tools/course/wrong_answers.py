"""Wrong answers, tried on the self-checks: is each refused, and is its mistake named?

Invariant: in one run of a lesson every exercise reports its stub as open, refuses every wrong
answer and accepts the folded solution. The answers are data, course/wrong_answers/<lesson>.toml.

    python -m tools.course.wrong_answers
"""

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import click
import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from plamo_ref.errors import PlamoRefError
from tools.course.editions import Exercise, exercises, number_of, rehearsal

FOLDER = Path("course/wrong_answers")  # under the root of the repository
CELL_SECONDS = 300


class AnswerError(PlamoRefError):
    """A file of wrong answers that does not fit its lesson."""


@dataclass(frozen=True)
class WrongAnswer:
    """An answer that people give, and words of the sentence that names its mistake ("": none)."""

    exercise: int
    mistake: str
    says: str
    code: str


@dataclass(frozen=True)
class Trial:
    """What the self-check answered: to the stub, to a wrong answer, or to the solution."""

    exercise: int
    what: str  # "stub", "solution", or the wrong answer's mistake
    expected: str  # words the verdict must have
    verdict: str  # what the check printed or raised

    @property
    def is_wrong_answer(self) -> bool:
        return self.what not in ("stub", "solution")

    @property
    def holds(self) -> bool:
        """The stub is open, the solution passes, a wrong answer is refused."""
        sign = "✗" if self.is_wrong_answer else {"stub": "○", "solution": "✓"}[self.what]
        lines = [line for line in self.verdict.splitlines() if line[:1] in ("✓", "○", "✗")]
        return bool(lines) and all(line.startswith(sign) for line in lines)

    @property
    def names_the_mistake(self) -> bool:
        return self.is_wrong_answer and bool(self.expected) and self.expected in self.verdict


def read_answers(path: Path) -> list[WrongAnswer]:
    """The wrong answers of a lesson.

    Raises:
        AnswerError: the file has another form.
    """
    found = []
    for key, entries in tomllib.loads(path.read_text(encoding="utf-8")).items():
        number = key.removeprefix("exercise-")
        if not number.isdigit():
            raise AnswerError(f"{path}: {key!r}, expected exercise-1, exercise-2, …")
        for entry in entries:
            if not {"mistake", "code"} <= entry.keys() <= {"mistake", "says", "code"}:
                raise AnswerError(
                    f"{path}: {key} has {sorted(entry)}, expected mistake, says, code"
                )
            says, code = entry.get("says", ""), entry["code"].strip("\n")
            found.append(WrongAnswer(int(number), entry["mistake"], says, code))
    return found


def try_answers(
    path: Path, answers: list[WrongAnswer], kernel: KernelManager | None = None
) -> list[Trial]:
    """Run the lesson once, in its folder, and try everything on its self-checks.

    `kernel`: one in which other lessons of the same folder may have run, all of whose names are
    forgotten first; what they have imported need not be imported again. None: a new one.
    """
    notebook = nbformat.read(path, as_version=4)
    known = {exercise.number: exercise for exercise in exercises(notebook)}
    if unknown := {answer.exercise for answer in answers} - known.keys():
        raise AnswerError(f"{path.name} has exercises {sorted(known)}, not {sorted(unknown)}")
    by_exercise = {n: [a for a in answers if a.exercise == n] for n in known}
    edition = rehearsal(notebook, {n: [a.code for a in some] for n, some in by_exercise.items()})
    if kernel is not None:
        edition.cells.insert(0, new_code_cell("%reset -f", id="forget"))
    client = NotebookClient(
        edition,
        km=kernel,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent.resolve())}},
    )
    client.execute()
    if kernel is not None and client.kc is not None:
        client.kc.stop_channels()
    cells = {cell.id: cell for cell in edition.cells}
    return [t for n, exercise in known.items() for t in _trials(exercise, by_exercise[n], cells)]


def _trials(
    exercise: Exercise, answers: list[WrongAnswer], cells: dict[str, NotebookNode]
) -> list[Trial]:
    number = exercise.number
    tried = [(a.mistake, a.says, f"ex{number}.{k}-check") for k, a in enumerate(answers, start=1)]
    tried = [("stub", "", exercise.check.id), *tried, ("solution", "", f"ex{number}.0-check")]
    return [Trial(number, what, says, _verdict(cells[cell])) for what, says, cell in tried]


def _verdict(cell: NotebookNode) -> str:
    """What a self-check printed, or the message with which it failed."""
    texts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            texts.append(output.text)
        elif output.output_type == "error":
            texts.append(output.evalue)
    return "\n".join(texts)


def lessons(root: Path) -> list[tuple[Path, list[WrongAnswer]]]:
    """Every lesson with its wrong answers (none where it has no file)."""
    found = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        data = root / FOLDER / f"{path.stem}.toml"
        found.append((path, read_answers(data) if data.exists() else []))
    return found


@click.command(help=__doc__)
@click.argument("numbers", nargs=-1)
@click.option("--verdicts", is_flag=True, help="show what each self-check says")
def main(numbers: tuple[str, ...], verdicts: bool) -> None:
    failed = wrong = named = 0
    for path, answers in lessons(Path()):
        if numbers and number_of(path) not in numbers:
            continue
        trials = try_answers(path, answers)
        mine = [t for t in trials if t.is_wrong_answer]
        wrong, named = wrong + len(mine), named + sum(t.names_the_mistake for t in mine)
        failed += sum(not t.holds for t in trials)
        click.echo(f"{path.stem}: {sum(t.names_the_mistake for t in mine)} of {len(mine)} named")
        for t in trials:
            if verdicts or not t.holds:
                click.echo(f"  {t.exercise} {t.what}\n    " + t.verdict.replace("\n", "\n    "))
    click.echo(f"{named} of {wrong} wrong answers are told their mistake; {failed} trials failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
