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
from plamo_ref.intake.json_files import is_there, parse, read_object, read_text
from plamo_ref.intake.values import shown

Row = tuple[str, float, str]  # text, score, type: one line of tokenizer.jsonl

ROWS_FILE = "tokenizer.jsonl"
BYTE = "BYTE"
BYTE_TEXT = re.compile(r"<0x[0-9A-Fa-f]{2}>")
MAX_PIECE = 1024  # characters; all that begins a piece is kept, so that long ones cost squares
MAX_PREFIXES = 1 << 28  # characters of all these beginnings; 100,000 genuine rows have few
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
        raise TokenizerError(f"{path}: add_bos_token is {shown(add_bos)}, expected true or false")
    given = [name for name in SPECIAL_NAMES if name in named]
    texts = {name: _token_text(folder, name, named[name]) for name in given}
    path = folder / ROWS_FILE
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
    with (folder / ROWS_FILE).open("w", encoding="utf-8", newline="\n") as file:
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
        found = shown(row)
    elif not isinstance(row[0], str) or not row[0] or SURROGATE.search(row[0]):
        found = f"text {shown(row[0])}"
    elif len(row[0]) > MAX_PIECE:
        found = f"one of {len(row[0]):,} characters; at most {MAX_PIECE:,} are read"
    elif isinstance(row[1], bool) or not isinstance(row[1], int | float):
        found = f"score {shown(row[1])}"
    elif not abs(row[1]) <= MAX_SCORE:  # also true of NaN
        found = "a score that is not a finite number"
    elif not isinstance(row[2], str):
        found = f"type {shown(row[2])}"
    elif row[2] == BYTE and not BYTE_TEXT.fullmatch(row[0]):
        found = f"a BYTE row with the text {shown(row[0])}, which is not <0xHH>"
    else:
        return row[0], float(row[1]), row[2]
    raise TokenizerError(
        f"line {number + 1} (id {number}): expected [text, score, type] with a non-empty Unicode "
        f"text and a finite score, found {found}"
    )


def check_prefixes(rows: Iterable[Row]) -> None:
    """Refuse rows whose beginnings, all of which are kept, would take gigabytes.

    Raises:
        TokenizerError: they would.
    """
    total = sum(len(text) ** 2 for text, _, kind in rows if kind != BYTE) // 2
    if total > MAX_PREFIXES:
        raise TokenizerError(
            f"the rows' texts have too many long ones among them: all that begins a piece is kept, "
            f"{total:,} characters here; at most {MAX_PREFIXES:,} are"
        )


def _read_rows(path: Path) -> list[Any]:
    """The JSON value of each line, not yet checked."""
    rows: list[Any] = []
    text = read_text(path, TokenizerError)
    # Not splitlines(): a piece may contain U+2028 and its like, which JSON does not escape.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        try:
            rows.append(parse(line, "", TokenizerError))
        except TokenizerError as error:
            raise TokenizerError(
                f"{path}: line {number} (id {number - 1}): expected a JSON array "
                f"[text, score, type], found {shown(line)}{error}"
            ) from None
    return rows


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object of an optional file; {} if there is no such file."""
    return read_object(path, TokenizerError) if is_there(path) else {}


def _token_text(folder: Path, name: str, value: Any) -> str | None:
    """A special token is written as its text, or as an object with its text as `content`."""
    text = value.get("content") if isinstance(value, dict) else value
    if isinstance(text, str) or value is None:
        return text
    raise TokenizerError(
        f"{folder}: {name} is {shown(value)}, expected the text of a token or null"
    )


def _write_object(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
