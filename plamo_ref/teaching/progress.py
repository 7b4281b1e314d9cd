"""note(): what the self-checks said, in a file that a reader asks for and may show to a class.

    PLAMO_PROGRESS=/media/stick/aki.jsonl jupyter lab

Invariant: nothing is written unless that variable names a file, and then only the name of the
check, what it said, and the time of day: no answer, nothing of the machine, and no name but that of
the file. A file that cannot be written never fails a check.
Used by `checks.py`; `python -m tools.course.progress FOLDER` shows the files of a class.
"""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Literal

VARIABLE = "PLAMO_PROGRESS"

State = Literal["open", "wrong", "passed"]


def note(check: str, state: State) -> None:
    """One more line of JSON: {"check": …, "state": …, "at": "10:42"}."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    line = {"check": check, "state": state, "at": f"{datetime.now():%H:%M}"}
    try:
        with Path(path).expanduser().open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        print(f"(not noted: {path}: {error.strerror})")
