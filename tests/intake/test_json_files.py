"""JSON that others wrote: its corners, and files that are none.

Invariant tested: whatever lies there, the reader gives plain JSON or one line that names the file.
"""

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo_ref.errors import PlamoRefError
from plamo_ref.intake.json_files import MAX_DEPTH, is_file, is_there, parse, read_object, read_text
from plamo_ref.intake.values import shown


class WrongError(PlamoRefError):
    """The error that a caller asks for."""


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(WrongError) as caught:
        read_object(path, WrongError)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 300
    assert message.isprintable()
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object, found list"),
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ('{"a": {"b": [{"c": 1, "c": 1}]}}', "'c' is there twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": [-Infinity]}', "-Infinity is not JSON"),
        ('{"a": 1e999}', "1e999 is no number that a float can hold"),
        (f'{{"a": {"9" * 5000}}}', "an integer of 5,000 digits"),
        (f'{{"a": -{"9" * 100}}}', "an integer of 101 digits"),
        (f'{{"{"k" * 5000}": 1}}', "a name of 5,000 characters"),
        ("[" * 100_000, "nested more than 64 levels deep"),
        ('{"a":' * 100_000, "nested more than 64 levels deep"),
        ("[" * 80 + "]" * 80, "nested more than 64 levels deep"),
        ('{"a": "\\ud800"}', "a lone surrogate"),
        ('{"\\udfff": 1}', "a lone surrogate"),
    ],
)
def test_corners_of_json_are_refused_by_name(tmp_path, text, part):
    (tmp_path / "x.json").write_text(text)
    refused(tmp_path / "x.json", part)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**60), 10**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_everything_else_is_read_as_it_is(value):
    assert parse(json.dumps(value), "x", WrongError) == value


@given(st.binary(max_size=40))
def test_any_bytes_are_an_object_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(data)
    said = ""
    try:
        assert isinstance(read_object(path, WrongError), dict)
    except WrongError as error:
        said = str(error)
    assert "\n" not in said


def test_the_deepest_that_is_read():
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse(text, "x", WrongError)) == text


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "found a folder")
    refused(tmp_path / "missing", "no such file")
    (tmp_path / "dangling").symlink_to("nowhere")
    refused(tmp_path / "dangling", "no such file")
    assert is_there(tmp_path / "dangling")
    assert not is_file(tmp_path / "dangling")
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop", "cannot be read")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "something that is none")  # and is not waited for
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(65 << 20)
    refused(tmp_path / "huge", "expected at most 67,108,864 bytes, found 68,157,440")


def test_names_that_no_file_can_have_are_not_there(tmp_path):
    for name in ("x" * 5000, "a\0b"):
        assert not is_file(tmp_path / name)
        assert not is_there(tmp_path / name)


def test_a_git_lfs_pointer_is_named_with_the_cure(tmp_path):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12\n"
    (tmp_path / "x.json").write_text(pointer)
    refused(tmp_path / "x.json", "Git LFS pointer", "git lfs pull")


def test_the_line_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_bytes("[1]\n猫\n".encode() + b"\xff\n")
    with pytest.raises(WrongError, match=r"x\.jsonl: line 3: not UTF-8"):
        read_text(tmp_path / "x.jsonl", WrongError)


def test_large_values_are_read_in_time_that_is_linear(tmp_path):
    """A text, a list and a number of 5 MB each: a square of that would take hours."""
    started = time.perf_counter()
    for value in (f'"{"猫" * 1_700_000}"', "0." + "1" * 5_000_000, f"[{'[],' * 300_000}[]]"):
        parse(value, "x", WrongError)
    with pytest.raises(WrongError, match="an integer of 5,000,000 digits"):
        parse("1" * 5_000_000, "x", WrongError)
    assert time.perf_counter() - started < 60


def test_a_value_in_a_message_is_short_and_printable():
    for value in (10**5000, "x" * 10_000_000, [[["\ud800"]]] * 1000, {"a\nb": 1}):
        deep = value
        for _ in range(5000):
            deep = [deep]
        for it in (value, deep):
            assert len(shown(it)) <= 81
            assert shown(it).isprintable()
