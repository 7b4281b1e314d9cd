"""Files that somebody else wrote, read with care: texts, and JSON within its narrow limits.

Invariant: what comes out is plain JSON whose every corner is known: no key twice, no NaN, numbers
that a float can hold, texts that UTF-8 can hold, at most `MAX_DEPTH` levels. Anything else is one
line that names the file and what is wrong with it. Reading costs no more than a file of that size
may cost.
"""

import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.values import SHOWN, shown

MAX_BYTES = 64 << 20  # of one JSON object; the largest genuine one, an index, has 40 kB
MAX_DEPTH = 64
MAX_DIGITS = 64  # tokenizers write 1e30 as an integer; a float holds 300 digits
MAX_NAME = 1024  # characters of a key
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

Errors = type[PlamoRefError]


class _CornerError(ValueError):
    """JSON that the standard library would take and we do not."""


def is_file(path: Path) -> bool:
    """Whether there is such a file; False also for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; as `is_file`."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_there(path: Path) -> bool:
    """Whether anything has this name: a folder, or a link to nothing, too."""
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True


def pointer_advice(head: bytes) -> str | None:
    """What to say of a file that begins with `head`, if it is a Git LFS pointer."""
    if not head.startswith(LFS_POINTER):
        return None
    return (
        "a Git LFS pointer, not the file that it stands for: run `git lfs pull` in the folder, "
        "or download the file itself"
    )


def read_bytes(path: Path, error: Errors, most: int | None = None) -> bytes:
    """The bytes of a file.

    Raises:
        PlamoRefError: of class `error`: there is no such file, it cannot be read, it is a folder
            or a Git LFS pointer, or it has more than `most` bytes.
    """
    try:
        found = path.stat()
        strange = _strangeness(found, most)
        data = b"" if strange else path.read_bytes()
    except FileNotFoundError:
        raise error(f"{path}: no such file") from None
    except (OSError, ValueError) as problem:
        why = getattr(problem, "strerror", None) or problem
        raise error(f"{path}: cannot be read: {why}") from None
    if strange:
        raise error(f"{path}: {strange}")
    advice = pointer_advice(data[: len(LFS_POINTER)])
    if advice is not None:
        raise error(f"{path}: {advice}")
    return data


def _strangeness(found: os.stat_result, most: int | None) -> str | None:
    """Why a thing with these properties is not to be opened."""
    if stat.S_ISDIR(found.st_mode):
        return "expected a file, found a folder of that name"
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
        return "expected a file, found something that is none"
    if most is not None and found.st_size > most:
        return f"expected at most {most:,} bytes, found {found.st_size:,}"
    return None


def read_text(path: Path, error: Errors, most: int | None = None) -> str:
    """The text of a UTF-8 file. Raises as `read_bytes` does, and names the line that is not."""
    data = read_bytes(path, error, most)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise error(f"{path}: line {line}: not UTF-8: {problem.reason}") from None


def read_object(path: Path, error: Errors) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        PlamoRefError: of class `error`: it cannot be read, or is not such an object.
    """
    value = parse(read_text(path, error, MAX_BYTES), str(path), error)
    if not isinstance(value, dict):
        raise error(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def parse(text: str, where: str, error: Errors) -> Any:
    """The value of a JSON text.

    Raises:
        PlamoRefError: of class `error`: it is no JSON, or beyond the limits; begins with `where`.
    """
    try:
        value = _DECODER.decode(text)
        _check_values(value)
    except RecursionError:
        raise error(f"{where}: nested more than {MAX_DEPTH} levels deep") from None
    except _CornerError as problem:
        raise error(f"{where}: {problem}") from None
    except ValueError as problem:
        raise error(f"{where}: not valid JSON: {problem}") from None
    return value


def _check_values(value: Any) -> None:
    """Depth, and texts that UTF-8 can hold; without recursion."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        if not level:
            return
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str):
                _check_text(item)
        level = inner
    raise RecursionError


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _CornerError(f"a lone surrogate, which no text has, in {shown(text)}") from None


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _CornerError(f"{shown(name)} is there twice")
        if len(name) > MAX_NAME:
            raise _CornerError(
                f"a name of {len(name):,} characters, {shown(name)}; at most {MAX_NAME:,} are read"
            )
        found[name] = value
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _CornerError(f"an integer of {len(digits):,} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _CornerError(f"{digits[:SHOWN]} is no number that a float can hold")
    return number


def _constant(name: str) -> NoReturn:
    raise _CornerError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant
)
