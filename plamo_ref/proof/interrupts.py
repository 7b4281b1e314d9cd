"""An error at a chosen point of the engine's own code, the same every time.

CPython hands a signal to Python at certain places only: where a function is entered, after a call,
and where a loop jumps back. These are the points that are counted here; another error, a lack of
memory for example, may come at any of them too.

Invariant: nothing of the engine is replaced; when the block has ended, it runs as before.
"""

import dis
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

# What a step and its text consist of. (The model below has no state that outlives a step.)
PLACES = tuple(
    str(Path(__file__).parents[1] / name)
    for name in ("engine", "parallel", "sampling", "text/stream.py", "text/detokenizer.py")
)


@dataclass
class Interrupter:
    """Counts the points that were reached; at number `point` (from 0) it raises `error`, once."""

    point: int
    error: BaseException
    num_passed: int = 0
    where: str | None = None  # file, line and function; None: it was not reached
    _known: dict[CodeType, frozenset[int]] = field(default_factory=dict)

    def enter(self, frame: FrameType, event: str, _: Any) -> Any:
        """Called by Python at the entry of each function."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PLACES):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if code not in self._known:
            self._known[code] = points(code)
        if not code.co_flags & 0x20:  # a generator is entered again wherever it stood
            self._pass(frame)
        return self._look

    def _look(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "opcode" and frame.f_lasti in self._known[frame.f_code]:
            self._pass(frame)
        return self._look

    def _pass(self, frame: FrameType) -> None:
        passed, self.num_passed = self.num_passed, self.num_passed + 1
        if passed == self.point:
            name = Path(frame.f_code.co_filename).name
            self.where = f"{name}, line {frame.f_lineno}, in {frame.f_code.co_qualname}"
            raise self.error


def points(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions before which CPython looks for signals."""
    found, after_call = set(), False
    for instruction in dis.get_instructions(code):
        name = instruction.opname
        if after_call:
            found.add(instruction.offset)
        if name.startswith("JUMP_BACKWARD") and not name.endswith("NO_INTERRUPT"):
            found.add(int(instruction.argval))
        after_call = name in ("CALL", "CALL_KW", "CALL_FUNCTION_EX")
    return frozenset(found)


@contextmanager
def interrupted(point: int, error: BaseException | None = None) -> Iterator[Interrupter]:
    """Let `error` (a KeyboardInterrupt) come at one point of the block, if it gets so far."""
    interrupter = Interrupter(point, error or KeyboardInterrupt(f"at point {point}"))
    before = sys.gettrace()
    sys.settrace(interrupter.enter)
    try:
        yield interrupter
    finally:
        sys.settrace(before)
