"""The files of a tokenizer: read with complaints that name file and line, written as the makers do.

Invariant: what `write_files` wrote, `read_files` reads back the same.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plamo_ref.errors import PlamoRefError

Row = tuple[str, float, str]  # text, score, type: one line of tokenizer.jsonl

BYTE = "BYTE"
BYTE_TEXT = re.compile(r"<0x[0-9A-Fa-f]{2}>")
MAX_SCORE = 1e300  # that a cost is still a finite float before it is rounded
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a UTF-16 pair: a str may have it, UTF-8 not
SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class TokenizerError(PlamoRefError, ValueError):
    """Tokenizer files, a text or an id that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files of a folder say; the rows are not yet checked."""

    path: Path  # of tokenizer.jsonl
    rows: list[Any]
    add_bos: bool
    special_tokens: dict[str, str | None]  # only those that the files name


def read_files(folder: Path) -> TokenizerFiles:
    """Read tokenizer.jsonl and its two optional companions."""
    config = _read_object(folder / "tokenizer_config.json")
    special = _read_object(folder / "special_tokens_map.json")
    # As in Transformers: the config has the last word only if it describes its added tokens.
    named = special | config if "added_tokens_decoder" in config else config | special
    add_bos = config.get("add_bos_token", False)
    if not isinstance(add_bos, bool):
        path = folder / "tokenizer_config.json"
        raise TokenizerError(f"{path}: add_bos_token is {add_bos!r}, expected true or false")
    given = [name for name in SPECIAL_NAMES if name in named]
    texts = {name: _token_text(folder, name, named[name]) for name in given}
    path = folder / "tokenizer.jsonl"
    return TokenizerFiles(path, _read_rows(path), add_bos, texts)


def write_files(
    folder: Path,
    rows: Iterable[Row],
    add_bos: bool,
    special_tokens: Mapping[str, str | None],
    special_texts: Mapping[int, str],
) -> None:
    """Write the three files. `special_texts`: the special tokens' ids and texts."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with (folder / "tokenizer.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    named = {n: {"content": text} | flags for n, text in special_tokens.items() if text is not None}
    _write_object(folder / "special_tokens_map.json", named)
    config: dict[str, Any] = {
        "add_bos_token": add_bos,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(i): {"content": text, "special": True} | flags for i, text in special_texts.items()
        },
        "auto_map": {"AutoTokenizer": ["tokenization_plamo.Plamo2Tokenizer", None]},
        "clean_up_tokenization_spaces": False,
        "local_file_only": True,
        "model_max_length": int(1e30),  # that is: unlimited
        "tokenizer_class": "Plamo2Tokenizer",
    }
    config |= {"cls_token": None, "mask_token": None, "sep_token": None}
    _write_object(folder / "tokenizer_config.json", config | dict(special_tokens))


def checked_row(number: int, row: Any) -> Row:
    """`row` as text, finite score and type, or an error that names the line."""
    if not isinstance(row, list | tuple) or len(row) < 3:
        found = repr(row)
    elif not isinstance(row[0], str) or not row[0] or SURROGATE.search(row[0]):
        found = f"text {row[0]!r}"
    elif isinstance(row[1], bool) or not isinstance(row[1], int | float):
        found = f"score {row[1]!r}"
    elif not abs(row[1]) <= MAX_SCORE:  # also true of NaN
        found = "a score that is not a finite number"
    elif not isinstance(row[2], str):
        found = f"type {row[2]!r}"
    elif row[2] == BYTE and not BYTE_TEXT.fullmatch(row[0]):
        found = f"a BYTE row with the text {row[0]!r}, which is not <0xHH>"
    else:
        return row[0], float(row[1]), row[2]
    raise TokenizerError(
        f"line {number + 1} (id {number}): expected [text, score, type] with a non-empty Unicode "
        f"text and a finite score, found {found[:200]}"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TokenizerError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise TokenizerError(f"{path}: line {line}: not UTF-8: {error.reason}") from None


def _read_rows(path: Path) -> list[Any]:
    """The JSON value of each line, not yet checked."""
    rows: list[Any] = []
    # Not splitlines(): a piece may contain U+2028 and its like, which JSON does not escape.
    for number, line in enumerate(_read_text(path).removesuffix("\n").split("\n"), 1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise TokenizerError(
                f"{path}: line {number} (id {number - 1}): expected a JSON array "
                f"[text, score, type], found {line[:200]!r} ({error})"
            ) from None
    return rows


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object of an optional file; {} if there is no such file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise TokenizerError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _token_text(folder: Path, name: str, value: Any) -> str | None:
    """A special token is written as its text, or as an object with its text as `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    if isinstance(text, str) or value is None:
        return text
    raise TokenizerError(f"{folder}: {name} is {value!r}, expected the text of a token or null")


def _write_object(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
